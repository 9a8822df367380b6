"""Proves that the merged model is the trained one: one pass over its files, compared with what TRAIN recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.scoring import kl_divergence
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.stages.merge.measures import Measures, measure, measure_on_original
from finetune_trainer.stages.merge.streamed_model import StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.merge.verdict import fault, fault_without_effect, weight_fault
from finetune_trainer.stages.merge.weight_proof import ProvenWeights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.evaluation.recording import Record
    from finetune_trainer.stages.merge.reference import Reference
    from finetune_trainer.stages.merge.streamed_model import Scores
    from finetune_trainer.stages.merge.weight_proof import TensorProof

_REMEDY = "nothing was published; run the job again, and report a bug with these numbers if it repeats"


@dataclass(frozen=True)
class Verification:
    """Trained against merged model. Losses are nats per supervised token of the same rows.

    `divergence` is the mean of KL(trained || merged) in nats over the recorded positions; for a merge `onto_original`
    weights, trained is the adapter on these. `weights` compares each written tensor with what it must be. `measures` is
    None if the record of an older trainer lacks the base's numbers. `best` are the merged model's most probable tokens
    at the supervised positions of the first row.
    """

    rows: int
    tokens: int
    divergence: float
    trained_loss: float
    merged_loss: float
    weights: tuple[TensorProof, ...]
    measures: Measures | None
    onto_original: bool
    best: tuple[int, ...]

    def fault(self) -> str | None:
        """Describe the first number out of bounds; None if the merged model is the trained one."""
        wrong = weight_fault(self.weights)
        if wrong is not None:
            return wrong
        if self.measures is not None:
            return fault(self.measures)
        return fault_without_effect(self.divergence, self.tokens, self.trained_loss, self.merged_loss)


def verify(
    folder: Path, record: Record, reference: Reference, progress: Callable[[int, int], None]
) -> Verification:
    """Run the recorded rows through the model in `folder`, and compare predictions and weights.

    Every weight is read once. `progress` gets (bytes read, in all). Raises StageError(ArtifactVerificationFailed) if
    the files lack a tensor.
    """
    rows = record.rows
    with TensorFiles(folder) as files:
        weights = ProvenWeights(files, reference, progress)
        variants = StreamedModel(folder, files).score(
            [row.example for row in rows], [row.positions for row in rows], weights
        )
        proofs = weights.finish()
        # The training had all other tensors in bf16.
        comparable = all(
            files.entry(name).dtype == "BF16"
            for name in files.names
            if name.removesuffix(".weight") not in reference.modules and name not in reference.kept
        )
    written = variants[0]
    measures = None
    if reference.onto_original:
        measures = measure_on_original(record, variants, comparable=comparable)
    elif record.knows_effect:
        measures = measure(record, *variants)
    tokens = sum(row.loss.tokens for row in rows)
    return Verification(
        rows=len(rows),
        tokens=tokens,
        divergence=_divergence(record, written) if measures is None else measures.mean.divergence,
        trained_loss=sum(row.loss.nats for row in rows) / tokens,
        merged_loss=-float(written.log_probabilities.double().mean()),
        weights=proofs,
        measures=measures,
        onto_original=reference.onto_original,
        best=tuple(written.best[: rows[0].loss.tokens].tolist()),
    )


def require_agreement(verification: Verification) -> None:
    """Raise StageError(ArtifactVerificationFailed) with the numbers if the models differ."""
    found = verification.fault()
    if found is not None:
        raise StageError(Reason.ARTIFACT_VERIFICATION_FAILED, f"the merged model's {found}; {_REMEDY}")


def require_tokenization(folder: Path, expected: str) -> None:
    """Check that tokenizer and chat template in `folder` are those of the training, `expected` as a digest.

    Raises StageError(ArtifactVerificationFailed) if they are not: the model would see other tokens than in training.
    """
    if tokenization_digest(folder) != expected:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            "the merged model's tokenizer and chat template must be those of the training, found that they differ; "
            + _REMEDY,
        )


def _divergence(record: Record, written: Scores) -> float:
    trained = torch.cat([row.log_probabilities for row in record.rows])
    return float(kl_divergence(trained, written.logits).double().mean())
