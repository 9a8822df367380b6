"""The weights that a merged model must have, for the proof: the base, and base plus update, before any rounding.

The proof compares the written files with these, and does not use what the merge reported. Memory: a few blocks.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from finetune_trainer.model.layout import KEPT_FOLDER, as_matrix, read_base_layout
from finetune_trainer.model.merge_target import merges_onto_original
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.quantization.rounding import STORED, Noise, round_weights
from finetune_trainer.stages.merge.exact import (
    QuantizedBase,
    StoredBase,
    WeightFiles,
    read_block,
)
from finetune_trainer.stages.merge.tensor_files import TORCH_TYPES, TensorFiles, row_blocks
from finetune_trainer.stages.merge.update import AdapterUpdates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.stages.merge.exact import BaseWeights, Block
    from finetune_trainer.stages.merge.update import Update
    from finetune_trainer.workspace.layout import WorkspaceLayout

# The artifact's own rounding has the seed of the training, which is no negative number.
_SECOND_SEED = -1


@dataclass(frozen=True)
class Rows:
    """Rows of one weight in float32, valid until the next ones: of the base, and `exact` = base + update.

    `trained` are those of the training, if the artifact is merged onto other weights than those.
    """

    base: torch.Tensor
    exact: torch.Tensor
    trained: torch.Tensor | None = None


class Reference(Protocol):
    """The weights that the artifact must have. All tensors are float32."""

    modules: frozenset[str]
    """Names of the modules whose weights are compared with base plus update. Every other tensor is a copy."""

    kept: frozenset[str]
    """Names of the tensors outside of the text model. They are copies of any type, byte for byte."""

    onto_original: bool
    """Whether the artifact is merged onto other weights than those of the training. Then `Rows.trained` is set."""

    def blocks(self, module: str) -> Iterator[Rows]:
        """Yield the rows of a module's weight, in the blocks of `row_blocks`."""

    def rows(self, module: str, start: int, count: int) -> Iterator[Rows]:
        """Yield `count` rows of a module's weight from row `start` on."""

    def unchanged(self, name: str) -> Iterator[torch.Tensor]:
        """Yield rows of a tensor that is copied, in the blocks of `row_blocks`."""

    def raw(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of a tensor in `kept`, in the blocks of `TensorFiles.raw`."""

    def rounded(self, name: str, first: int, exact: torch.Tensor, dtype: str) -> torch.Tensor:
        """Round rows of the weight `name` from row `first` on to `dtype`, as the artifact must have them."""

    def second(self, name: str, first: int, exact: torch.Tensor, dtype: str) -> torch.Tensor:
        """Round the same rows honestly once more, in another way: what differs then is rounding noise."""


class ExactReference:
    """Base plus update, computed from the 4-bit checkpoint or from the base's own weights."""

    def __init__(
        self,
        layout: BaseLayout,
        updates: Mapping[str, Update],
        trained: BaseWeights,
        copies: TensorFiles,
        original: BaseWeights | None = None,
        seed: int | None = None,
        replaced: Mapping[str, tuple[TensorFiles, str]] | None = None,
        placed: Mapping[str, tuple[TensorFiles, str]] | None = None,
    ) -> None:
        """Take the weights of the training and the files of all other tensors.

        With `original` weights, the artifact is merged onto these, and `seed` is that of its stochastic rounding.
        `replaced` has file and name of the tensors that training replaced as a whole, and `placed` those of copies that
        have another file or name than in `copies`.
        """
        tensors = [tensor for file in layout.files for tensor in file.tensors]
        self._tensors = {
            tensor.name.removesuffix(".weight"): (tensor.name, tensor.shape) for tensor in tensors
        }
        # Modules have the names of the weight files here, and those of the text model in the adapter.
        self._own = {name: layout.module(tensor) for name, (tensor, _) in self._tensors.items()}
        self._updates, self._trained, self._copies = updates, trained, copies
        self._base, self._seed, self._replaced = original or trained, seed, replaced or {}
        self._placed = placed or {}
        self.onto_original = original is not None
        self.modules = frozenset(
            name
            for name, own in self._own.items()
            if own in layout.quantized and self._tensors[name][0] not in self._replaced
        )
        self.kept = frozenset(tensor.name for tensor in tensors if layout.text_name(tensor.name) is None)
        self._updated = frozenset(name for name, own in self._own.items() if own in updates)

    def blocks(self, module: str) -> Iterator[Rows]:
        """Yield the rows of a module's weight."""
        rows, _ = as_matrix(self._tensors[module][1])
        return self.rows(module, 0, rows)

    def rows(self, module: str, start: int, count: int) -> Iterator[Rows]:
        """Yield some rows of a module's weight."""
        name, shape = self._tensors[module]
        own = self._own[module]
        update = self._updates[own] if own is not None and module in self._updated else None
        scratch, other = Scratch(), Scratch()

        def block(base: BaseWeights, first: int, rows: int, memory: Scratch) -> Block:
            return read_block(base, name, shape, update, first, rows, memory)

        for offset, rows in row_blocks(count, shape[-1]):
            first = start + offset
            found = block(self._base, first, rows, scratch)
            trained = block(self._trained, first, rows, other).exact if self.onto_original else None
            yield Rows(
                torch.from_numpy(found.base),
                torch.from_numpy(found.exact),
                None if trained is None else torch.from_numpy(trained),
            )

    def unchanged(self, name: str) -> Iterator[torch.Tensor]:
        """Yield rows of a tensor that is copied."""
        place = self._replaced.get(name) or self._placed.get(name)
        files, source = place or (self._copies, name)
        for _, rows in files.blocks(source):
            yield rows

    def raw(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of a tensor that is kept."""
        files, source = self._placed.get(name, (self._copies, name))
        return files.raw(source)

    def rounded(self, name: str, first: int, exact: torch.Tensor, dtype: str) -> torch.Tensor:
        """Round to the nearest value, or stochastically if the artifact is merged onto the original weights."""
        updated = name.removesuffix(".weight") in self._updated
        noise = Noise.of(self._seed, name) if self._seed is not None and updated else None
        return _rounded(exact, dtype, noise, first)

    def second(self, name: str, first: int, exact: torch.Tensor, dtype: str) -> torch.Tensor:
        """Round stochastically with another seed."""
        return _rounded(exact, dtype, Noise.of(_SECOND_SEED, name), first)


def _rounded(exact: torch.Tensor, dtype: str, noise: Noise | None, first: int) -> torch.Tensor:
    if dtype not in STORED:
        return exact
    values: NDArray[np.float32] = exact.reshape(-1).numpy()
    out = torch.empty(exact.shape, dtype=TORCH_TYPES[dtype])
    bits = out.reshape(-1).view(torch.uint16) if dtype != "F32" else out.reshape(-1)
    round_weights(values, dtype, bits.numpy(), noise, first * exact.shape[1])
    return out.float()


@contextmanager
def open_reference(
    run: RunSpec, workspace: WorkspaceLayout, layout: BaseLayout, updates: AdapterUpdates | None = None
) -> Iterator[ExactReference]:
    """Open the reference of the artifact that a run asks for; `layout` has the artifact's tensors.

    `updates` are those of the workspace's adapter, if they are not given.
    """
    updates = updates or AdapterUpdates(workspace.adapter, layout)
    base = read_base_layout(workspace)
    onto_original = merges_onto_original(run)
    with ExitStack() as stack:
        files = WeightFiles(workspace.quantized_model, base.checkpoint_files, base.text_names)
        trained = QuantizedBase(stack.enter_context(files))
        original = None
        placed: dict[str, tuple[TensorFiles, str]] = {}
        if onto_original:
            names = [file.name for file in base.files]
            original = StoredBase(stack.enter_context(WeightFiles(workspace.original, names)))
            copies = stack.enter_context(TensorFiles(workspace.original))
        else:
            copies = stack.enter_context(TensorFiles(workspace.quantized_model))
            if base.text_names is not None:
                kept = stack.enter_context(TensorFiles(workspace.quantized_model / KEPT_FOLDER))
                placed = {name: (kept, name) for name in kept.names}
                placed |= {name: (copies, own) for name, own in base.text_names.items()}
        yield ExactReference(
            layout,
            updates,
            trained,
            copies,
            original,
            run.training.seed if onto_original else None,
            _replaced(stack, workspace, layout, updates),
            placed,
        )


@contextmanager
def open_adapter_on_original(workspace: WorkspaceLayout, layout: BaseLayout) -> Iterator[ExactReference]:
    """Open the base's own weights plus the update, for a comparison with the training; `layout` has their tensors."""
    updates = AdapterUpdates(workspace.adapter, layout)
    names = [file.name for file in read_base_layout(workspace).files]
    with ExitStack() as stack:
        original = StoredBase(stack.enter_context(WeightFiles(workspace.original, names)))
        copies = stack.enter_context(TensorFiles(workspace.original))
        replaced = _replaced(stack, workspace, layout, updates)
        yield ExactReference(layout, updates, original, copies, replaced=replaced)


def _replaced(
    stack: ExitStack, workspace: WorkspaceLayout, layout: BaseLayout, updates: AdapterUpdates
) -> dict[str, tuple[TensorFiles, str]]:
    """Return the adapter's file and name of each tensor that it replaces, by its name in the weight files."""
    if not updates.replaced:
        return {}
    adapter = stack.enter_context(TensorFiles(workspace.adapter))
    return {layout.file_names[name]: (adapter, entry.name) for name, entry in updates.replaced.items()}
