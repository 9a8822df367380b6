"""The layout of the base model's weight files and the quantized modules: PREPARE's record for TRAIN and MERGE."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import FLOATS, PlannedTensor
from finetune_trainer.model.weight_places import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from finetune_trainer.workspace.layout import WorkspaceLayout

KEPT_FOLDER = "kept"
"""Folder in the 4-bit checkpoint with the tensors that do not belong to the text model."""


@dataclass(frozen=True)
class WeightFile:
    """One weight file of the base model: its tensors in the order of their bytes."""

    name: str
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True)
class BaseLayout:
    """All weight files of the base model, and the tensors that were quantized to NF4, without their `.weight`.

    `transposed` are those of them whose matrices hold a row for each input instead of each output. `places` has the rows that
    are the weight of a module of the model, if the files hold it under another name or in a larger tensor.

    `text_names` is set for a model that also sees or hears. It has the text model's name of each tensor that belongs to it, and
    `quantized`, `transposed` and `places` have names of the text model. All other tensors are kept as they are.
    """

    files: tuple[WeightFile, ...]
    quantized: frozenset[str]
    transposed: frozenset[str] = frozenset()
    places: Mapping[str, Rows] = field(default_factory=dict)
    text_names: Mapping[str, str] | None = None

    @property
    def adaptable(self) -> frozenset[str]:
        """The modules that may get an adapter, by their names in the model; experts by those of their tensors."""
        placed = {rows.module for rows in self.places.values()}
        return self.quantized - placed | self.places.keys()

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and the shape of the weight of each adaptable module."""
        tensors = {tensor.name: tensor.shape for file in self.files for tensor in file.tensors}
        shapes = {own: tensors[name] for own, name in self.file_names.items()}
        for module, rows in self.places.items():
            yield module, (rows.count, *shapes[rows.tensor][1:])
        adaptable = self.adaptable - self.places.keys()
        for name, shape in shapes.items():
            if (module := name.removesuffix(".weight")) in adaptable:
                yield module, shape

    def text_name(self, tensor: str) -> str | None:
        """Return the name in the 4-bit checkpoint of a tensor of the weight files; None if it is kept as it is."""
        return tensor if self.text_names is None else self.text_names.get(tensor)

    def module(self, tensor: str) -> str | None:
        """Return the name in `quantized` that a tensor of the weight files has if it is there; None if it is kept."""
        name = self.text_name(tensor)
        return None if name is None else name.removesuffix(".weight")

    @cached_property
    def file_names(self) -> Mapping[str, str]:
        """The name in the weight files of each tensor of the text model."""
        names = (tensor.name for file in self.files for tensor in file.tensors)
        return {own: name for name in names if (own := self.text_name(name)) is not None}

    @property
    def checkpoint_files(self) -> tuple[str, ...]:
        """The files of the 4-bit checkpoint that hold the tensors, relative to its folder."""
        found = []
        for file in self.files:
            kept = [self.text_name(tensor.name) is None for tensor in file.tensors]
            # A file without tensors is one of the text model.
            found += [] if kept and all(kept) else [file.name]
            found += [f"{KEPT_FOLDER}/{file.name}"] if any(kept) else []
        return tuple(found)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all 4-bit weights, two weights a byte, without their scales."""
        return sum(
            -(-prod(tensor.shape) // 2)
            for file in self.files
            for tensor in file.tensors
            if self.module(tensor.name) in self.quantized
        )

    @property
    def bytes(self) -> int:
        """Bytes of all tensors in their types."""
        return sum(tensor.bytes for file in self.files for tensor in file.tensors)

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(prod(tensor.shape) for file in self.files for tensor in file.tensors)

    def stored_as(self, dtype: Literal["BFloat16", "AsBase"]) -> BaseLayout:
        """Return the layout of an artifact: floats in bf16, or every tensor in the base's type.

        A tensor outside of the text model keeps its type.
        """
        if dtype == "AsBase":
            return self
        files = tuple(
            WeightFile(
                file.name,
                tuple(
                    tensor if self.text_name(tensor.name) is None else _in_bf16(tensor)
                    for tensor in file.tensors
                ),
            )
            for file in self.files
        )
        return replace(self, files=files)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a weight as one matrix: the matrices of experts stand below each other."""
    return prod(shape[:-1]), shape[-1]


def _in_bf16(tensor: PlannedTensor) -> PlannedTensor:
    return replace(tensor, dtype="BF16") if tensor.dtype in FLOATS else tensor


def read_base_layout(workspace: WorkspaceLayout) -> BaseLayout:
    """Read `base/layout.json`.

    Raises StageError(QuantizationMismatch) if the file is missing or is not PREPARE's, or if the 4-bit checkpoint
    that it describes is missing.
    """
    if not workspace.quantized_model.is_dir():
        cached = workspace.quantized_model.is_symlink()
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            "the workspace must hold PREPARE's 4-bit checkpoint, found "
            + (
                f"a link to {workspace.quantized_model.readlink()}, which does not exist; mount modelCache there in every "
                "stage, or run PREPARE again if the cache was emptied"
                if cached
                else "none; run PREPARE again"
            ),
        )
    try:
        document = json.loads(workspace.base_layout.read_text(encoding="utf-8"))
        return BaseLayout(
            files=tuple(
                WeightFile(
                    str(file["name"]),
                    tuple(
                        PlannedTensor(str(tensor["name"]), str(tensor["dtype"]), tuple(tensor["shape"]))
                        for tensor in file["tensors"]
                    ),
                )
                for file in document["files"]
            ),
            quantized=frozenset(document["quantized"]),
            transposed=frozenset(document.get("transposed", ())),
            places={
                str(module): Rows(str(tensor), int(first), int(last))
                for module, (tensor, first, last) in document.get("places", {}).items()
            },
            text_names=document.get("textNames"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            f"the workspace must hold PREPARE's base/layout.json, found {type(error).__name__}: {error}; "
            "run PREPARE again",
        ) from error
