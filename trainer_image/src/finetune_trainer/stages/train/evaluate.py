"""TRAIN's evaluation: losses of base and tuned model, their answers, and the report for people."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import PrepareResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.answers import Answers, Asking, ask
from finetune_trainer.evaluation.compare import RowLoss, compare, mean_loss
from finetune_trainer.evaluation.recording import record
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.generation import stop_token_ids
from finetune_trainer.model.output_head import is_sharded
from finetune_trainer.model.tokenization import tokenization_digest
from finetune_trainer.report.evaluation_page import evaluation_report, write_evaluation_report
from finetune_trainer.stages.train.fit import measure_within
from finetune_trainer.stages.train.out_of_memory import is_device_out_of_memory
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.ranks.losses import common_budgets, pacing, shared_losses
from finetune_trainer.stages.train.versions import current_versions
from finetune_trainer.workspace.layout import read_marker, write_marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import EvaluationResult
    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)
_BASE = "base-evaluation"


def base_losses(
    run: RunSpec,
    workspace: WorkspaceLayout,
    model: Any,
    examples: Sequence[Example],
    budgets: Sequence[int],
    progress: Reporter,
    ranks: Ranks = ALONE,
) -> list[RowLoss]:
    """Return the losses with the adapter disabled. They are measured once and kept in the workspace.

    Other versions of the software measure them again, because the tuned model is measured with these. `budgets` are the
    tokens of a batch to try one after another.
    """
    versions = current_versions()

    def find() -> list[RowLoss] | None:
        done = read_marker(workspace, _BASE, run.spec_hash)
        return None if done is None or done.get("versions", versions) != versions else _kept(done)

    known = ranks.from_first(find)
    if known is not None:
        _report_mean(known, progress)
        return known
    with model.disable_adapter():
        losses = _measured("EvaluatingBase", model, examples, budgets, progress, ranks)
    if ranks.is_first:
        _keep(losses, run, workspace, versions)
    _report_mean(losses, progress)
    return losses


def _measured(
    activity: str,
    model: Any,
    examples: Sequence[Example],
    budgets: Sequence[int],
    progress: Reporter,
    ranks: Ranks,
) -> list[RowLoss]:
    """Measure the model as it is, without dropout. Each rank has a part, and the progress is that of this rank's part."""
    model.eval()
    budgets = common_budgets(model, budgets)

    def measure(own: Sequence[Example]) -> list[RowLoss]:
        progress.update(activity, 0, len(own))
        return measure_within(
            lambda tokens: row_losses(
                model, own, tokens, lambda done, total: progress.update(activity, done, total)
            ),
            budgets,
        )

    losses = shared_losses(ranks, examples, measure, pacing(model, ranks, budgets[0]))
    if losses is None:
        raise RuntimeError("every rank must measure its part of the rows")
    return losses


def _keep(
    losses: Sequence[RowLoss], run: RunSpec, workspace: WorkspaceLayout, versions: Mapping[str, str]
) -> None:
    kept = {
        "losses": [{"row": loss.row, "nats": loss.nats, "tokens": loss.tokens} for loss in losses],
        # An earlier trainer accepts no more members of a loss, and ignores this list.
        "correct": [loss.correct for loss in losses],
        "versions": versions,
    }
    write_marker(workspace, _BASE, run.spec_hash, kept)


def tuned_losses(
    model: Any,
    examples: Sequence[Example],
    budgets: Sequence[int],
    progress: Reporter,
    ranks: Ranks = ALONE,
) -> list[RowLoss]:
    """Return the losses with the adapter."""
    losses = _measured("EvaluatingTuned", model, examples, budgets, progress, ranks)
    _report_mean(losses, progress)
    return losses


def compared(run: RunSpec, base: Sequence[RowLoss], tuned: Sequence[RowLoss]) -> EvaluationResult:
    """Compare both measurements. Raises StageError(NonFiniteLoss) if a loss is not finite: it would pass as NoChange."""
    _require_finite(base, "base")
    _require_finite(tuned, "tuned")
    return compare(base, tuned, run.training.seed, run.evaluation.minimum_rows)


def judged(
    run: RunSpec,
    workspace: WorkspaceLayout,
    model: Any,
    examples: Sequence[Example],
    base: Sequence[RowLoss],
    budgets: Sequence[int],
    progress: Reporter,
    ranks: Ranks,
) -> EvaluationResult | None:
    """Measure the tuned `model` and record what it predicts, for MERGE; return the verdict on the first rank only."""
    tuned = tuned_losses(model, examples, budgets, progress, ranks)
    # All ranks of a sharded model have to compute what is recorded.
    if not ranks.is_first and not is_sharded(model):
        return None
    comparison = compared(run, base, tuned)
    record(
        model,
        examples,
        base,
        tuned,
        tokenization_digest(workspace.base),
        workspace.verification if ranks.is_first else None,
    )
    if ranks.is_first:
        return comparison
    # The first rank answers with the weights of all.
    answers(run, workspace, model, examples, progress, ranks)
    return None


def answers(
    run: RunSpec,
    workspace: WorkspaceLayout,
    model: Any,
    examples: Sequence[Example],
    progress: Reporter,
    ranks: Ranks = ALONE,
) -> Answers:
    """Return what base and tuned `model` answer. All ranks of a sharded model must call it."""
    model.eval()

    def any_says(said: bool) -> bool:  # noqa: FBT001 -- `generation.Limits` has it
        return any(one for (one,) in ranks.gather_numbers([said]))

    asking = Asking(
        model,
        workspace.base,
        answer_stops(workspace, run.spec_hash, examples),
        lambda done, total: progress.update("GeneratingAnswers", done, total),
        is_device_out_of_memory,
        any_says if is_sharded(model) else bool,
    )
    return ask(run, asking, examples)


def with_answers(
    run: RunSpec, workspace: WorkspaceLayout, evaluation: EvaluationResult, found: Answers
) -> EvaluationResult:
    """Return the evaluation with the metrics on generated answers, and write the report on it.

    Neither a failure of the generation nor one of the report ends the run: the adapter is trained and saved.
    """
    if found.metrics:
        evaluation = evaluation.model_copy(update={"metrics": found.metrics})
    try:
        write_evaluation_report(workspace.report, evaluation_report(run, evaluation, found))
    except OSError as error:
        _log.warning("the workspace cannot keep the report on the evaluation: %s", error)
    return evaluation


def answer_stops(workspace: WorkspaceLayout, spec_hash: str, examples: Sequence[Example]) -> tuple[int, ...]:
    """Return the tokens at which a served artifact stops: those that end trained answers, and the base's own.

    The result of an earlier PREPARE does not name the first; then they are the last tokens of the held-out answers.
    """
    prepared = PrepareResult.read(read_marker(workspace, "prepare", spec_hash))
    ends = prepared.dataset.end_tokens if prepared is not None else None
    learned = (
        [token.id for token in ends]
        if ends
        else [example.input_ids[example.supervised[-1]] for example in examples]
    )
    return tuple(dict.fromkeys([*learned, *stop_token_ids(workspace.base)]))


def _report_mean(losses: Sequence[RowLoss], progress: Reporter) -> None:
    """Show the loss per supervised token in the progress."""
    if any(loss.tokens for loss in losses):
        progress.measure(evaluation_loss=mean_loss(losses))


def _kept(done: dict[str, Any]) -> list[RowLoss]:
    losses = [RowLoss(**loss) for loss in done["losses"]]
    correct = done.get("correct") or [None] * len(losses)
    return [replace(loss, correct=count) for loss, count in zip(losses, correct, strict=True)]


def _require_finite(losses: Sequence[RowLoss], model: str) -> None:
    broken = next((loss for loss in losses if not math.isfinite(loss.nats)), None)
    if broken is not None:
        raise StageError(
            Reason.NON_FINITE_LOSS,
            f"the loss of every validation row must be finite, found {broken.nats} at row {broken.row} with the {model} "
            "model; check this row and the base model, and lower training.learningRate",
        )
