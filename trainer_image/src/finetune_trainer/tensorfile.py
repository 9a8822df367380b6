"""The safetensors file format, read and written piece by piece.

Layout: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without holes
(https://github.com/huggingface/safetensors#format). The library itself needs whole tensors in memory.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MAXIMUM_HEADER = 100_000_000
ITEM_BYTES = {
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
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type name in the format, its shape and its absolute place in the file."""

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

    Raises StageError(InvalidModel) if the file is cut short or is not safetensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAXIMUM_HEADER)))
        entries = [
            TensorEntry(
                name=name,
                dtype=str(value["dtype"]),
                shape=tuple(int(extent) for extent in value["shape"]),
                start=8 + length + int(value["data_offsets"][0]),
                end=8 + length + int(value["data_offsets"][1]),
            )
            for name, value in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise StageError(
            Reason.INVALID_MODEL, f"{path.name} must be a complete safetensors file, found: {error}"
        ) from error
    for entry in entries:
        size_by_shape = entry.elements * ITEM_BYTES.get(entry.dtype, -1)
        if entry.end > size or entry.end - entry.start != size_by_shape:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{path.name} must hold every byte of its tensors, found tensor {entry.name} cut short or of an "
                f"unknown type {entry.dtype}",
            )
    return sorted(entries, key=lambda entry: entry.start)


class TensorReader:
    """Bytes of a file's tensors, mapped and not copied."""

    def __init__(self, path: Path) -> None:
        self.entries = read_header(path)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def chunks(self, entry: TensorEntry, elements: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (first element, bytes) of consecutive parts of at most `elements` elements."""
        item = ITEM_BYTES[entry.dtype]
        for first in range(0, entry.elements, elements):
            start = entry.start + first * item
            end = min(entry.end, start + elements * item)
            yield first, self._bytes[start:end]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class TensorWriter:
    """Writes tensors of known sizes at their places in any order, and small trailing byte tensors.

    Sizes are needed beforehand so that nothing is buffered; byte tensors whose size comes out late (the
    quantisation states) go to the end, where they move nothing. Wide types come first, which keeps every
    tensor aligned to its type. The file appears under its name only when `finish` has flushed it to disk.
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
        # Room for the late entries: their numbers have at most 20 digits each.
        late = {name: _header_entry("U8", (10**19,), 10**19, 10**19) for name in trailing_names}
        reserved = len(json.dumps({**self._header, **late}, separators=(",", ":")).encode())
        self._header_bytes = -(-reserved // 8) * 8
        self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

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
        """Write the header, flush to disk and give the file its name."""
        header = json.dumps(self._header, separators=(",", ":")).encode().ljust(self._header_bytes)
        self._write_at(0, struct.pack("<Q", self._header_bytes) + header)
        os.ftruncate(self._file, 8 + self._header_bytes + self._end)
        os.fsync(self._file)
        os.close(self._file)
        self._temporary.replace(self._path)

    def abandon(self) -> None:
        """Remove what was written so far."""
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
