"""Adapters that are trained in a second, and artifacts with and without faults, for tests of the proof in MERGE."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetune_trainer.evaluation.recording import read_record, record
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.layout import BaseLayout, read_base_layout
from finetune_trainer.model.load import load_quantized
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.stages.merge.exact import QuantizedBase, StoredBase, WeightFiles
from finetune_trainer.stages.merge.reference import ExactReference
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.merge.update import AdapterUpdates, LowRankUpdate
from finetune_trainer.stages.merge.verification import Verification, verify
from finetune_trainer.stages.merge.weights import MergeInputs, merge_weights
from finetune_trainer.stages.train.adapter import add_adapter, save_adapter
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.dataset import open_table
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import StepCollator
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file, save_file
from transformers import set_seed

from tests.support import workspaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from finetune_trainer.data.masking.example import Example

Updates = dict[str, LowRankUpdate]
_TOKENS = 4096
_SEED = 11


@dataclass(frozen=True)
class Tuned:
    """A workspace whose adapter and record exist, as TRAIN leaves it, and the folder of the base's own weights."""

    workspace: WorkspaceLayout
    original: Path

    @property
    def layout(self) -> BaseLayout:
        """The base's tensors."""
        return read_base_layout(self.workspace)

    @property
    def updates(self) -> Updates:
        """The adapter's updates by module."""
        updates = AdapterUpdates(self.workspace.adapter)
        return {module: update for module, update in updates.items() if isinstance(update, LowRankUpdate)}

    @contextmanager
    def reference(
        self, updates: Mapping[str, LowRankUpdate] | None = None, *, onto_original: bool = False
    ) -> Iterator[ExactReference]:
        """Open the weights that an artifact must have, with other updates than the adapter's if they are given."""
        names = [file.name for file in self.layout.files]
        folder = self.original if onto_original else self.workspace.quantized_model
        with (
            WeightFiles(self.workspace.quantized_model, names) as trained,
            WeightFiles(folder, names) as files,
            TensorFiles(folder) as copies,
        ):
            yield ExactReference(
                self.layout,
                self.updates if updates is None else updates,
                QuantizedBase(trained),
                copies,
                StoredBase(files) if onto_original else None,
                _SEED if onto_original else None,
            )

    def merge(
        self,
        folder: Path,
        updates: Mapping[str, LowRankUpdate] | None = None,
        *,
        onto_original: bool = False,
    ) -> Path:
        """Write the weights of the adapter, or of other updates, and the base's configs into a new folder."""
        folder.mkdir()
        names = [file.name for file in self.layout.files]
        source = self.original if onto_original else self.workspace.quantized_model
        with WeightFiles(source, names) as files:
            inputs = MergeInputs(
                files,
                StoredBase(files) if onto_original else QuantizedBase(files),
                self.updates if updates is None else updates,
                requantized=not onto_original,
                seed=_SEED if onto_original else None,
            )
            merge_weights(inputs, self.layout, folder, _ignore)
        for path in self.workspace.base.glob("*.json"):
            shutil.copy(path, folder)
        return folder

    def verify(
        self,
        folder: Path,
        updates: Mapping[str, LowRankUpdate] | None = None,
        *,
        onto_original: bool = False,
    ) -> Verification:
        """Compare an artifact with the record. `updates` are those that MERGE would read from the adapter."""
        record = read_record(self.workspace.verification)
        with self.reference(updates, onto_original=onto_original) as reference:
            return verify(folder, record, reference, _ignore)


def tune(prepared: Path, root: Path, original: Path, **training: Any) -> Tuned:
    """Train an adapter in a copy of the workspace `prepared`: TRAIN's model, adapter, loss and record in a plain loop.

    TRL's trainer takes seconds to start. `original` has the base's own weights. `training` overrides members of the
    run's training, for example `maximumSteps` and `learningRate`.
    """
    shutil.copytree(prepared, root)
    workspace = WorkspaceLayout(root)
    run = workspaces.run_spec(root, root / "unused", **training)
    settings = run.training
    model = load_quantized(workspace.quantized_model, "cpu")
    set_seed(settings.seed)
    adapted = add_adapter(model, settings.lora, read_base_layout(workspace).quantized)
    held_out = open_table(workspace.validation_table).first(run.evaluation.maximum_rows)
    adapted.eval()
    with adapted.disable_adapter():
        base = row_losses(adapted, held_out, _TOKENS, _ignore)
    rows = open_table(workspace.training_table).first(10**6)
    adapted.train()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in adapted.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
    )
    assert settings.maximum_steps is not None
    size = settings.micro_batch_size
    for step in range(settings.maximum_steps):
        _step(adapted, optimizer, [rows[(step * size + index) % len(rows)] for index in range(size)])
    adapted.eval()
    tuned = row_losses(adapted, held_out, _TOKENS, _ignore)
    record(adapted, held_out, base, tuned, tokenization_digest(workspace.base), workspace.verification)
    save_adapter(adapted, workspace.adapter, "tiny")
    return Tuned(workspace, original)


def scaled(updates: Mapping[str, LowRankUpdate], factor: float) -> Updates:
    """Return the updates of an adapter that is `factor` times as strong."""
    return {module: replace(update, scale=update.scale * factor) for module, update in updates.items()}


def swapped(updates: Mapping[str, LowRankUpdate]) -> Updates:
    """Return updates whose A and B are exchanged, in every module whose weight is square."""
    return {
        module: replace(update, a=np.ascontiguousarray(update.b.T), b=np.ascontiguousarray(update.a.T))
        if update.a.shape[1] == update.b.shape[0]
        else update
        for module, update in updates.items()
    }


def without(updates: Mapping[str, LowRankUpdate], part: str) -> Updates:
    """Return the updates without those of the modules whose name has `part`."""
    return {module: update for module, update in updates.items() if part not in module}


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Replace tensors of the weight files in `folder` by what `change` returns; None leaves a tensor out."""
    for path in folder.glob("*.safetensors"):
        tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
        kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, path, metadata={"format": "pt"})


def _step(model: Any, optimizer: torch.optim.Optimizer, rows: list[Example]) -> None:
    collate = StepCollator(Batching("AsDrawn", 0, len(rows)))
    step = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    optimizer.zero_grad()
    (negative_log_likelihood(model, step.passes[0]) / step.learned).backward()
    optimizer.step()


def _ignore(_done: int, _total: int) -> None:
    """Show no progress."""
