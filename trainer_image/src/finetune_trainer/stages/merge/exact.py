"""The exact values of the weights: of the base, and of base plus update, in float32 and block by block.

The base is the 4-bit checkpoint of the training, or the original weights. Memory: one block.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import KEPT_FOLDER, as_matrix
from finetune_trainer.model.safetensors_file import FLOATS, ITEM_BYTES, TensorEntry, TensorReader
from finetune_trainer.quantization.dequantize import Nf4Weight, Scratch
from finetune_trainer.stages.merge.tensor_files import TORCH_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune_trainer.stages.merge.update import Update

_BLOCK_ELEMENTS = 256 * 1024  # base and sum of a block stay in the processor's cache


class BaseWeights(Protocol):
    """Weights of the base model in float32. Several threads may read them, each with its own scratch."""

    def read(
        self, tensor: str, shape: tuple[int, ...], first: int, count: int, scratch: Scratch
    ) -> NDArray[np.float32]:
        """Return `count` values of a tensor of this `shape` from flat position `first` on, as a view into `scratch`.

        Raises StageError(QuantizationMismatch) if there is no such tensor.
        """


class WeightFiles:
    """The open safetensors files of a folder, and their tensors by name. Use it in a `with` statement."""

    def __init__(self, folder: Path, names: Iterable[str], stored: Mapping[str, str] | None = None) -> None:
        """Open the files. Raises StageError(InvalidModel) if one cannot be read.

        `stored` is set for the 4-bit checkpoint of a model that also sees or hears (`BaseLayout.text_names`). Then a tensor of
        the text model is found by its name in the base's weight files, and every other one in the folder of those that are kept.
        """
        self._stored = stored
        self._readers = {name: TensorReader(folder / name) for name in names}
        self._entries: dict[str, tuple[str, TensorEntry]] = {}
        self._kept: dict[str, tuple[str, TensorEntry]] = {}
        for name, reader in self._readers.items():
            kept = stored is not None and name.startswith(f"{KEPT_FOLDER}/")
            (self._kept if kept else self._entries).update(
                {entry.name: (name, entry) for entry in reader.entries}
            )
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for reader in self._readers.values():
            self._open.enter_context(reader)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, str) and self._place(tensor) is not None

    def stored_name(self, tensor: str) -> str:
        """Return the name of a tensor in its file."""
        return tensor if self._stored is None else self._stored.get(tensor, tensor)

    def find(self, tensor: str) -> tuple[TensorReader, TensorEntry]:
        """Return a tensor's file and entry. Raises StageError(QuantizationMismatch) if there is none."""
        place = self._place(tensor)
        if place is None:
            names = ", ".join(self._readers)
            raise StageError(
                Reason.QUANTIZATION_MISMATCH,
                f"{names if len(names) < 200 else 'the weight files'} must hold tensor {tensor}, found none; run PREPARE "
                "again",
            )
        name, entry = place
        return self._readers[name], entry

    def beside(self, tensor: str) -> dict[str, TensorEntry]:
        """Return the tensors of the file that holds `tensor`, by their names in it."""
        name, _ = self._entries[self.stored_name(tensor)]
        return {entry.name: entry for entry in self._readers[name].entries}

    def _place(self, tensor: str) -> tuple[str, TensorEntry] | None:
        if self._stored is not None and tensor not in self._stored:
            return self._kept.get(tensor)
        return self._entries.get(self.stored_name(tensor))


class QuantizedBase:
    """The weights of the 4-bit checkpoint as they were trained on, without a rounding to 16 bits."""

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self._weights: dict[str, Nf4Weight] = {}

    def read(
        self, tensor: str, shape: tuple[int, ...], first: int, count: int, scratch: Scratch
    ) -> NDArray[np.float32]:
        """Read as BaseWeights does."""
        weight = self._weights.get(tensor)
        if weight is None:
            reader, _ = self._files.find(tensor)
            # Two threads may both make one; they are equal.
            stored, beside = self._files.stored_name(tensor), self._files.beside(tensor)
            weight = Nf4Weight(reader, beside, stored, int(np.prod(shape, dtype=np.int64)))
            self._weights[tensor] = weight
        return weight.read(first, count, scratch)


class StoredBase:
    """Weights that are stored in 16 or 32 bits."""

    def __init__(self, files: WeightFiles) -> None:
        self._files = files

    def read(
        self, tensor: str, shape: tuple[int, ...], first: int, count: int, scratch: Scratch
    ) -> NDArray[np.float32]:
        """Read as BaseWeights does."""
        reader, entry = self._files.find(tensor)
        if entry.shape != shape or entry.dtype not in FLOATS:
            raise StageError(
                Reason.QUANTIZATION_MISMATCH,
                f"the base's tensor {tensor} must have the shape {list(shape)} in 16 or 32 bits, found "
                f"{list(entry.shape)} of {entry.dtype}; run PREPARE again",
            )
        item = ITEM_BYTES[entry.dtype]
        raw = scratch.array("stored", count * item, np.uint8)
        values = scratch.array("values", count, np.float32)
        reader.read_into(entry, first * item, raw)
        torch.from_numpy(values).copy_(torch.from_numpy(raw).view(TORCH_TYPES[entry.dtype]))
        return values


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one weight in float32, (rows, in): `base`, and `exact` = base + update.

    Both are views into a scratch, valid until its next use.
    """

    first_row: int
    base: NDArray[np.float32]
    exact: NDArray[np.float32]


def block_rows(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a block of a weight."""
    return max(1, _BLOCK_ELEMENTS // max(1, as_matrix(shape)[1]))


def read_block(
    base: BaseWeights,
    tensor: str,
    shape: tuple[int, ...],
    update: Update | None,
    first: int,
    rows: int,
    scratch: Scratch,
) -> Block:
    """Return `rows` rows of a weight from row `first` on; `shape` is that of the `tensor`."""
    columns = as_matrix(shape)[1]
    values = base.read(tensor, shape, first * columns, rows * columns, scratch)
    before = values.reshape(rows, columns)
    if update is None:
        return Block(first, before, before)
    exact: NDArray[Any] = scratch.array("exact", rows * columns, np.float32).reshape(rows, columns)
    update.apply(before, first, exact)
    return Block(first, before, exact)
