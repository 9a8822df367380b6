"""Reads the tensors of an artifact's safetensors files, a block of rows at a time, as float32."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import ITEM_BYTES, TensorEntry, TensorReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# 4 MiB in float32: large enough for a fast matrix product, and memory that the process can use again without a fault
# for each page.
ELEMENTS_AT_ONCE = 1024 * 1024
TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of tensors, by their names in safetensors files."""


class TensorFiles:
    """All tensors of the weight files in one folder. It needs a `with` statement around it.

    `bytes_read` counts the bytes of each tensor that were read, so that a caller can tell how often it read a tensor.
    Reading goes through a file descriptor: its pages belong to the kernel and not to this process.
    """

    def __init__(self, folder: Path) -> None:
        """List the tensors. Raises StageError(InvalidModel) as `safetensors_file.read_header` does."""
        self._readers = [TensorReader(path) for path in sorted(folder.glob("*.safetensors"))]
        self._places = {entry.name: (reader, entry) for reader in self._readers for entry in reader.entries}
        self._open = ExitStack()
        self.bytes_read = dict.fromkeys(self._places, 0)

    def __enter__(self) -> Self:
        for reader in self._readers:
            self._open.enter_context(reader)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._places)

    def entry(self, name: str) -> TensorEntry:
        """Return type and shape of a tensor. Raises StageError(ArtifactVerificationFailed) if there is none."""
        if name not in self._places:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"the merged model must have the tensor {name} that its config asks for, found none; nothing was "
                "published, report a bug",
            )
        return self._places[name][1]

    def bytes(self, name: str) -> int:
        """Return the size of a tensor in its file."""
        entry = self.entry(name)
        return entry.end - entry.start

    def whole(self, name: str) -> torch.Tensor:
        """Return a whole tensor in float32, for small ones."""
        entry = self.entry(name)
        return self._read(name, 0, entry.elements).float().reshape(entry.shape)

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, float32 rows) of a tensor in order. The last axis is the width of a row."""
        entry = self.entry(name)
        width = _width(entry)
        for first, count in row_blocks(entry.elements // width, width):
            yield first, self._read(name, first * width, count * width).float().reshape(count, width)

    def raw(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of a tensor of any type in order, in blocks of at most `ELEMENTS_AT_ONCE`."""
        reader, entry = self._places[name]
        for first in range(0, entry.end - entry.start, ELEMENTS_AT_ONCE):
            buffer = np.empty(min(ELEMENTS_AT_ONCE, entry.end - entry.start - first), dtype=np.uint8)
            reader.read_into(entry, first, buffer)
            self.bytes_read[name] += buffer.nbytes
            yield buffer

    def span(self, name: str, first: int, count: int) -> torch.Tensor:
        """Return `count` rows of a tensor from row `first` on, in float32."""
        width = _width(self.entry(name))
        return self._read(name, first * width, count * width).float().reshape(count, width)

    def rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Return some rows of a matrix in float32, each read by itself."""
        width = _width(self.entry(name))
        found = [self._read(name, row * width, width) for row in rows]
        return torch.stack(found).float() if found else torch.empty(0, width)

    def _read(self, name: str, first: int, elements: int) -> torch.Tensor:
        reader, entry = self._places[name]
        item = ITEM_BYTES[entry.dtype]
        buffer = np.empty(elements * item, dtype=np.uint8)
        if elements:
            reader.read_into(entry, first * item, buffer)
        self.bytes_read[name] += buffer.nbytes
        kind = TORCH_TYPES.get(entry.dtype)
        if kind is None:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"tensors of the merged model must have a type that torch computes with, found {entry.dtype} in {name}; "
                "choose another base model",
            )
        return torch.from_numpy(buffer).view(kind) if elements else torch.empty(0)


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of consecutive blocks of at most `ELEMENTS_AT_ONCE` elements."""
    size = max(1, ELEMENTS_AT_ONCE // width)
    return ((first, min(size, rows - first)) for first in range(0, rows, size))


def _width(entry: TensorEntry) -> int:
    return max(1, entry.shape[-1]) if entry.shape else 1
