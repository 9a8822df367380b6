"""Reads and writes the safetensors file format piece by piece.

Layout: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without holes
(https://github.com/huggingface/safetensors#format). The library itself needs whole tensors in memory.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MAXIMUM_HEADER = 100_000_000  # the format's own limit
FLOATS = frozenset({"BF16", "F16", "F32"})
"""Types of weights that can be trained; PREPARE stores all of them in bf16."""
ITEM_BYTES = {
    "C64": 8,
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type's name in the format, its shape, and its first and last offset in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_header(path: Path) -> list[TensorEntry]:
    """List a file's tensors in the order of their bytes.

    Raises StageError(InvalidModel) with file and tensor if the file cannot be read, is cut short or violates the
    format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length > size - 8:
                raise _invalid(path, f"{size} bytes, fewer than its header needs; fetch the file again")
            if length > _MAXIMUM_HEADER:
                raise _invalid(
                    path,
                    f"a header of {length} bytes, more than the format's {_MAXIMUM_HEADER}; it is another format",
                )
            text = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    entries = [_entry(path, name, value, 8 + length) for name, value in _header_items(path, text)]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = 8 + length
    for entry in entries:
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise _invalid(path, f"tensor {entry.name}, whose data {what}; write the file again")
        position = entry.end
    if position != size:
        relation = "fewer" if size < position else "more"
        raise _invalid(
            path, f"{size} bytes, {relation} than the {position} of its tensors; fetch the file again"
        )
    return entries


def _header_items(path: Path, text: bytes) -> list[tuple[str, Any]]:
    def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise _invalid(path, f"{repeated!r} twice in its header; write the file again")
        return members

    try:
        header = json.loads(text, object_pairs_hook=without_repetition)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"a header that is no JSON ({error}); it is another format") from error
    if not isinstance(header, dict):
        raise _invalid(path, "a header that is no JSON object; it is another format")
    return [(name, value) for name, value in header.items() if name != "__metadata__"]


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    """Check one member of the header."""
    members = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (members.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise _invalid(path, f"tensor {name} without a shape and two offsets; write the file again")
    if dtype not in ITEM_BYTES:
        raise _invalid(path, f"tensor {name} of the unknown type {dtype!r}; save the model in bf16")
    entry = TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if entry.end - entry.start != entry.elements * ITEM_BYTES[dtype]:
        raise _invalid(
            path,
            f"tensor {name} of type {dtype} and shape {shape} in {entry.end - entry.start} bytes; "
            "write the file again",
        )
    return entry


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _invalid(path: Path, found: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, f"{path.name} must be a complete safetensors file, found {found}")


def _unreadable(path: Path, error: OSError) -> StageError:
    return StageError(
        Reason.INVALID_MODEL,
        f"{path.name} must be readable, found: {error.strerror or type(error).__name__}; check the volume",
    )


class TensorReader:
    """Reads the bytes of a file's tensors. `read_into` needs a `with` statement around it."""

    def __init__(self, path: Path) -> None:
        """Raise as `read_header` does."""
        self.entries = read_header(path)
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> Self:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read_into(self, entry: TensorEntry, first_byte: int, buffer: NDArray[np.uint8]) -> None:
        """Fill `buffer` with the tensor's bytes from `first_byte` on; safe from several threads.

        With a memory map, a disk fault or a file that becomes shorter would raise a signal; here it is an error. The
        pages belong to the kernel and not to this process. Raises StageError(InvalidModel).
        """
        if self._file is None:
            raise ValueError("the reader must be open: use it in a `with` statement")
        view = buffer.data.cast("B")
        position = entry.start + first_byte
        while view:
            try:
                count = os.preadv(self._file, [view], position)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if count == 0:
                raise _invalid(
                    self._path, f"tensor {entry.name} cut short while it was read; fetch the file again"
                )
            view = view[count:]
            position += count

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self._path, dtype=np.uint8, mode="r")

    def chunks(self, entry: TensorEntry, elements: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (first element, bytes) of consecutive parts of at most `elements` elements, mapped and not copied."""
        item = ITEM_BYTES[entry.dtype]
        for first in range(0, entry.elements, elements):
            start = entry.start + first * item
            end = min(entry.end, start + elements * item)
            yield first, self._bytes[start:end]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its name, its type's name in the format, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class TensorWriter:
    """Writes tensors of known sizes in any order, and small byte tensors at the end.

    Sizes must be known at the start, so that nothing is buffered. Byte tensors whose size is known late (the
    quantization states) go to the end. Wide types come first, which aligns every tensor to its type. The file gets its
    name only after `finish` has flushed it to disk. `write` is safe from several threads, the other methods are not.
    """

    def __init__(self, path: Path, planned: Iterable[PlannedTensor], trailing_names: Iterable[str]) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        ordered = sorted(planned, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, int] = {}
        offset = 0
        for tensor in ordered:
            self._offsets[tensor.name] = offset
            end = offset + tensor.bytes
            self._header[tensor.name] = _header_entry(tensor.dtype, tensor.shape, offset, end)
            offset = end
        self._end = offset
        # Space for the late entries: each of their numbers has at most 20 digits.
        late = {name: _header_entry("U8", (10**19,), 10**19, 10**19) for name in trailing_names}
        reserved = len(json.dumps({**self._header, **late}, separators=(",", ":")).encode())
        self._header_bytes = -(-reserved // 8) * 8
        self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, name: str, first_byte: int, data: NDArray[np.uint8] | bytes) -> None:
        """Write part of a planned tensor, `first_byte` bytes from its beginning."""
        self._write_at(8 + self._header_bytes + self._offsets[name] + first_byte, data)

    def append(self, name: str, data: bytes) -> None:
        """Add a trailing tensor of bytes."""
        end = self._end + len(data)
        self._header[name] = _header_entry("U8", (len(data),), self._end, end)
        self._write_at(8 + self._header_bytes + self._end, data)
        self._end = end

    def finish(self) -> None:
        """Write the header, flush the file to disk and rename it to its final name."""
        header = json.dumps(self._header, separators=(",", ":")).encode().ljust(self._header_bytes)
        self._write_at(0, struct.pack("<Q", self._header_bytes) + header)
        os.ftruncate(self._file, 8 + self._header_bytes + self._end)
        os.fsync(self._file)
        os.close(self._file)
        self._temporary.replace(self._path)

    def abandon(self) -> None:
        """Remove the unfinished file."""
        os.close(self._file)
        self._temporary.unlink(missing_ok=True)

    def _write_at(self, position: int, data: NDArray[np.uint8] | bytes) -> None:
        view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        while view:
            written = os.pwrite(self._file, view, position)
            view = view[written:]
            position += written


def _header_entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
