"""What the adapter loses on the original base, where most servers load it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finetune_trainer.evaluation.recording import read_record
from finetune_trainer.stages.merge.reference import open_adapter_on_original
from finetune_trainer.stages.merge.streamed_model import StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.stages.merge.reference import Reference
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout


@dataclass(frozen=True)
class OriginalLoss:
    """Nats per supervised token on the recorded rows: of the trained model, and of its adapter on the original base."""

    trained: float
    original: float


class ExactWeights:
    """The exact weights of a reference for a forward pass: one variant, before any rounding."""

    variants = 1

    def __init__(self, reference: Reference, files: TensorFiles, progress: Reporter) -> None:
        """Take the weights; `files` has the sizes of all tensors, for the progress."""
        self._reference, self._files, self._progress = reference, files, progress
        self._done = 0
        self._bytes = sum(files.bytes(name) for name in files.names)

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        """Return some rows of a merged weight."""
        module = name.removesuffix(".weight")
        return (torch.cat([found.exact.clone() for found in self._reference.rows(module, first, count)]),)

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield (first row, rows) of a weight."""
        module, first = name.removesuffix(".weight"), 0
        merged = module in self._reference.modules
        blocks = (
            (found.exact for found in self._reference.blocks(module))
            if merged
            else self._reference.unchanged(name)
        )
        for rows in blocks:
            yield first, (rows,)
            first += rows.shape[0]
        self._done += self._files.bytes(name)
        self._progress.update("Verifying", self._done, self._bytes)


def adapter_on_original_loss(
    workspace: WorkspaceLayout, layout: BaseLayout, progress: Reporter
) -> OriginalLoss:
    """Run the rows that TRAIN recorded through the original base with the adapter, in float32.

    `layout` has the base's tensors. Each of its weights is read once. Raises StageError(ArtifactVerificationFailed) if
    the files lack a tensor.
    """
    rows = read_record(workspace.verification).rows
    with (
        open_adapter_on_original(workspace, layout) as reference,
        TensorFiles(workspace.original) as files,
    ):
        weights = ExactWeights(reference, files, progress)
        # The small files of the base in `workspace.base` belong to any weights of it.
        (scores,) = StreamedModel(workspace.base, files).score(
            [row.example for row in rows], [[] for _ in rows], weights
        )
    tokens = sum(row.loss.tokens for row in rows)
    return OriginalLoss(
        trained=math.fsum(row.loss.nats for row in rows) / tokens,
        original=-float(scores.log_probabilities.double().mean()),
    )
