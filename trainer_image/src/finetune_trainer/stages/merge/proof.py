"""Proves a merged folder before it is published, and shows an answer of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import VerificationResult
from finetune_trainer.evaluation.recording import read_record
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.stages.merge.answering import (
    fits,
    generated_answer,
    predicted_answer,
    require_stops,
)
from finetune_trainer.stages.merge.free_memory import free_memory
from finetune_trainer.stages.merge.verdict import noise, slope_tolerance, verdict
from finetune_trainer.stages.merge.verification import require_agreement, require_tokenization, verify
from finetune_trainer.stages.merge.weight_proof import total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from finetune_trainer.contract.result import EndToken
    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.stages.merge.reference import Reference
    from finetune_trainer.stages.merge.verification import Verification
    from finetune_trainer.stages.merge.weight_proof import TensorProof
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proof:
    """The result's member, and for each tensor with an update the projection and the relative error of what is written."""

    result: VerificationResult
    survival: Mapping[str, tuple[float, float]]


def prove_artifact(
    workspace: WorkspaceLayout,
    folder: Path,
    layout: BaseLayout,
    reference: Reference,
    ends: Sequence[EndToken],
    progress: Reporter,
) -> Proof:
    """Compare the merged model in `folder` with what TRAIN recorded in the workspace, and let it answer one prompt.

    `reference` has the weights that the folder must have, and `ends` the tokens that end a trained answer. Raises
    StageError(ArtifactVerificationFailed) with the numbers.
    """
    record = read_record(workspace.verification)
    require_stops(folder, ends)
    require_tokenization(folder, record.tokenization or tokenization_digest(workspace.base))
    progress.update("Verifying", 0, layout.bytes)
    found = verify(folder, record, reference, lambda done, total: progress.update("Verifying", done, total))
    _log.info(
        "merged against trained model: KL %.3g nats a token, loss %.4f against %.4f",
        found.divergence,
        found.merged_loss,
        found.trained_loss,
    )
    if found.measures is None:
        _log.warning(
            "an older trainer recorded no numbers of the base, so the merge is judged by absolute bounds alone"
        )
    require_agreement(found)
    example = record.rows[0].example
    if fits(layout.parameters, free_memory()):
        prompt, answer = generated_answer(folder, example)
    else:
        prompt, answer = predicted_answer(folder, example, found.best)
    return Proof(proof_result(found, prompt, answer), survival(found.weights))


def proof_result(verification: Verification, prompt: str, answer: str) -> VerificationResult:
    """Return the member of the result. What the proof does not know is not set."""
    return VerificationResult(
        rows=verification.rows,
        tokens=verification.tokens,
        kl_divergence=verification.divergence,
        trained_loss=verification.trained_loss,
        merged_loss=verification.merged_loss,
        prompt=prompt,
        answer=answer,
        **_effect(verification),
        **_survival(verification.weights),
    )


def survival(proofs: Sequence[TensorProof]) -> dict[str, tuple[float, float]]:
    """Return the projection and the relative error of each tensor's written update, by name."""
    return {proof.name: (proof.projection, proof.relative_error) for proof in proofs if proof.intended}


def _effect(verification: Verification) -> dict[str, Any]:
    measures = verification.measures
    if measures is None:
        return {}
    mean = measures.mean
    original = {"adapter_on_original_loss": measures.exact_loss} if verification.onto_original else {}
    return {
        **original,
        "verdict": verdict(measures),
        "base_divergence": mean.effect,
        "noise_divergence": noise(mean),
        "slope": measures.slope.value,
        "slope_tolerance": slope_tolerance(measures),
    }


def _survival(proofs: Sequence[TensorProof]) -> dict[str, Any]:
    updated = tuple(proof for proof in proofs if proof.intended)
    if not updated:
        return {}
    weakest = min(updated, key=lambda proof: proof.projection)
    return {
        "surviving_update": total(updated).projection,
        "weakest_tensor": weakest.name,
        "weakest_survival": weakest.projection,
    }
