"""Write the merged weights, tensor by tensor, in the order of the base model's files.

An updated weight is the base plus the adapter's update, added in float32 and rounded once. Every other tensor is the
base's. Memory: a few blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import (
    FLOATS,
    ITEM_BYTES,
    PlannedTensor,
    TensorEntry,
    TensorReader,
    read_header,
)
from finetune_trainer.quantization.rounding import STORED, Noise, round_weights
from finetune_trainer.stages.merge.exact import BaseWeights, WeightFiles, block_rows, read_block
from finetune_trainer.stages.merge.file_writer import FileWriter, TensorSource
from finetune_trainer.stages.merge.tensor_files import TORCH_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.quantization.dequantize import Scratch
    from finetune_trainer.stages.merge.journal import FileRecord, Journal
    from finetune_trainer.stages.merge.update import Update


@dataclass(frozen=True)
class MergeInputs:
    """What is merged.

    `base` has the linear weights and `files` all other tensors. `requantized` says that `base` is the 4-bit checkpoint:
    then also a weight without update comes from it. Without `seed`, updated weights round to the nearest, else
    stochastically. `replaced` has tensors that replace those of the base.
    """

    files: WeightFiles
    base: BaseWeights
    updates: Mapping[str, Update]
    requantized: bool = True
    seed: int | None = None
    replaced: Mapping[str, tuple[TensorReader, TensorEntry]] = field(default_factory=dict)

    def source(self, tensor: PlannedTensor, layout: BaseLayout) -> TensorSource:
        """Return the source of one tensor. Raises StageError(QuantizationMismatch) if the base lacks it."""
        module = layout.module(tensor.name)
        if module is None:
            return _Copied(*self.files.find(tensor.name), tensor)
        replaced = self.replaced.get(layout.text_name(tensor.name) or tensor.name)
        if replaced is not None:
            return _Copied(*replaced, tensor)
        if module in self.updates or (self.requantized and module in layout.quantized):
            noise = None if self.seed is None else Noise.of(self.seed, tensor.name)
            return _Merged(self.base, tensor, self.updates.get(module), noise)
        return _Copied(*self.files.find(tensor.name), tensor)


def require_matching(
    updates: Mapping[str, Update],
    shapes: Mapping[str, tuple[int, ...]],
    replaced: Mapping[str, TensorEntry],
    layout: BaseLayout,
) -> None:
    """Check that each part of the adapter belongs to one weight of the base, with its shape.

    `shapes` has the shape of each update's weight. Raises StageError(InternalError) if an update or a replaced tensor has no
    weight, and ArtifactVerificationFailed if the shapes differ.
    """
    tensors = {
        own: tensor
        for file in layout.files
        for tensor in file.tensors
        if (own := layout.text_name(tensor.name)) is not None
    }
    unmatched = sorted((updates.keys() - layout.quantized) | (replaced.keys() - tensors.keys()))
    if unmatched:
        raise StageError(
            Reason.INTERNAL_ERROR,
            f"every adapter matrix must belong to a quantized weight, found {len(unmatched)} that do not: "
            f"{', '.join(unmatched[:3])}",
        )
    wanted: dict[str, tuple[int, ...]] = {
        name: shapes[module] for name in tensors if (module := name.removesuffix(".weight")) in shapes
    }
    wanted |= {name: entry.shape for name, entry in replaced.items()}
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"the adapter must fit the base: {name} has the shape {list(tensors[name].shape)}, found an update of "
                f"{list(shape)}; train again on this base",
            )


def merge_weights(
    inputs: MergeInputs,
    layout: BaseLayout,
    target: Path,
    progress: Callable[[int, int], None],
    *,
    threads: int = 1,
    journal: Journal | None = None,
) -> dict[str, FileRecord]:
    """Write every weight file of `layout` into the folder `target`, and return the record of each by name.

    `progress` gets (bytes done, in all).

    `layout` has the types to write (`BaseLayout.stored_as`). With a `journal`, files that an earlier run finished are
    kept. Raises StageError(QuantizationMismatch) if the base lacks a tensor, and ArtifactVerificationFailed if a merged
    value is not finite in its type.
    """
    done = 0
    records: dict[str, FileRecord] = {}
    with FileWriter(threads) as writer:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, layout.bytes)

        for file in layout.files:
            record = journal.find(target / file.name) if journal is not None else None
            if record is not None:
                advance(sum(tensor.bytes for tensor in file.tensors))
            else:
                record = writer.write(
                    target / file.name, file.tensors, lambda tensor: inputs.source(tensor, layout), advance
                )
                if journal is not None:
                    journal.write(file.name, record)
            records[file.name] = record
    return records


def check_weights(target: Path, layout: BaseLayout) -> None:
    """Check that the written headers list exactly the tensors, types, shapes and order of `layout`, and no 4-bit tensor.

    Raises StageError(ArtifactVerificationFailed) naming the file.
    """
    for file in layout.files:
        found = [(entry.name, entry.dtype, entry.shape) for entry in read_header(target / file.name)]
        expected = [(tensor.name, tensor.dtype, tensor.shape) for tensor in file.tensors]
        if found != expected:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"{file.name} must hold the base's {len(expected)} tensors with their names, types and shapes, found "
                f"{len(found)} or other ones; report a bug",
            )


@dataclass(frozen=True)
class _Copied:
    """A tensor that is copied; a float may get another type."""

    reader: TensorReader
    entry: TensorEntry
    tensor: PlannedTensor
    step: int = 1

    def __post_init__(self) -> None:
        convertible = self.entry.dtype in FLOATS and self.tensor.dtype in FLOATS
        if self.entry.shape != self.tensor.shape or not (
            convertible or self.entry.dtype == self.tensor.dtype
        ):
            raise StageError(
                Reason.QUANTIZATION_MISMATCH,
                f"the base's tensor {self.tensor.name} must be {self.tensor.dtype} of shape {list(self.tensor.shape)}, "
                f"found {self.entry.dtype} of {list(self.entry.shape)}; run PREPARE again",
            )

    def fill(self, first: int, out: NDArray[np.uint8], scratch: Scratch) -> bool:
        """Fill as TensorSource does."""
        count = out.size // ITEM_BYTES[self.tensor.dtype]
        item = ITEM_BYTES[self.entry.dtype]
        if self.entry.dtype == self.tensor.dtype:
            self.reader.read_into(self.entry, first * item, out)
            return True
        raw = scratch.array("copied", count * item, np.uint8)
        self.reader.read_into(self.entry, first * item, raw)
        values = torch.from_numpy(out).view(TORCH_TYPES[self.tensor.dtype])
        values.copy_(torch.from_numpy(raw).view(TORCH_TYPES[self.entry.dtype]))
        return bool(torch.isfinite(values).all())


@dataclass(frozen=True)
class _Merged:
    """A linear weight, with or without an update, rounded once."""

    base: BaseWeights
    tensor: PlannedTensor
    update: Update | None
    noise: Noise | None

    @property
    def step(self) -> int:
        """Elements of one row."""
        return self.tensor.shape[-1]

    def fill(self, first: int, out: NDArray[np.uint8], scratch: Scratch) -> bool:
        """Fill as TensorSource does."""
        shape, columns = self.tensor.shape, self.tensor.shape[-1]
        values: NDArray[Any] = out.view(STORED[self.tensor.dtype])
        finite = True
        rows_at_once, row, done = block_rows(shape), first // columns, 0
        while done < values.size:
            rows = min(rows_at_once, (values.size - done) // columns)
            block = read_block(self.base, self.tensor.name, shape, self.update, row, rows, scratch)
            finite &= round_weights(
                block.exact.reshape(-1),
                self.tensor.dtype,
                values[done : done + rows * columns],
                self.noise,
                row * columns,
            )
            row, done = row + rows, done + rows * columns
        return finite
