"""evaluation.gate: the verdict on the tuned model decides whether its artifacts are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.contract.run_spec import Gate
    from finetune_trainer.contract.train_result import EvaluationResult

PASSING: Mapping[Gate, tuple[str, ...]] = {
    "Report": ("Improved", "NoChange", "Worse", "Inconclusive"),
    "WithholdIfWorse": ("Improved", "NoChange", "Inconclusive"),
    "WithholdUnlessImproved": ("Improved",),
}
"""The verdicts with which each gate publishes."""


def require_passed(gate: Gate, evaluation: EvaluationResult) -> None:
    """Raise StageError(WithheldByGate) with the losses and the interval if the gate withholds the artifacts."""
    passing = PASSING[gate]
    if evaluation.verdict in passing:
        return
    low, high = evaluation.interval
    raise StageError(
        Reason.WITHHELD_BY_GATE,
        f"evaluation.gate {gate} publishes if the verdict is {' or '.join(passing)}, found {evaluation.verdict}. "
        f"Loss {evaluation.base_loss:.4f} before and {evaluation.tuned_loss:.4f} after training on {evaluation.rows} "
        f"held-out rows, difference {evaluation.difference:+.4f} with 95 % interval {low:+.4f} to {high:+.4f} nats per "
        "token. This run publishes nothing. Improve the data or the training settings, hold out more rows, or set "
        "evaluation.gate to Report. In a cluster, create the job again; `finetune run` publishes without training again",
    )
