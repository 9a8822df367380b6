"""Compares base and tuned model on held-out rows: losses and accuracy per row, paired intervals, and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from finetune_trainer.contract.train_result import EvaluationResult, PairedResult, PerplexityResult
from finetune_trainer.evaluation.interval import ratio_estimate, ratio_interval
from finetune_trainer.evaluation.power import needed_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_Verdict = Literal["Improved", "NoChange", "Worse", "Inconclusive"]


@dataclass(frozen=True)
class RowLoss:
    """Loss of one held-out example: the sum over its supervised tokens in nats, and the number of these tokens.

    `row` is the number of its row in the source; a conversation of several turns may make several examples.
    `correct` counts the supervised tokens that the model finds most likely; None if an older trainer measured the row.
    """

    row: int
    nats: float
    tokens: int
    correct: int | None = None


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Return the loss in nats per supervised token over all rows. Each token counts once, as in training."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def compare(
    base: Sequence[RowLoss], tuned: Sequence[RowLoss], seed: int, minimum_rows: int = 20
) -> EvaluationResult:
    """Compare two measurements of the same examples in the same order.

    Rows are paired (Koehn 2004), and the 95 % intervals are those of `interval.ratio_interval`. The verdict is that of the
    loss in which each token counts once, because training minimizes it. Examples of one row are not independent, so they
    count as one row. Raises ValueError if the examples differ.
    """
    if [(loss.row, loss.tokens) for loss in base] != [(loss.row, loss.tokens) for loss in tuned]:
        raise ValueError("base and tuned losses must be of the same rows in the same order")
    before, after = _by_row(base), _by_row(tuned)
    tokens = np.array([loss.tokens for loss in before], dtype=np.float64)
    differences = _nats(after) - _nats(before)
    low, high = ratio_interval(differences, tokens, seed)
    difference = float(differences.sum() / tokens.sum())
    enough = len(before) >= minimum_rows
    found = verdict(low, high) if enough else "Inconclusive"
    result = EvaluationResult(
        rows=len(before),
        base_loss=mean_loss(before),
        tuned_loss=mean_loss(after),
        difference=difference,
        interval=(low, high),
        verdict=found,
        by_row=_by_row_means(before, after, tokens, seed),
    )
    more = {
        "token_accuracy": _token_accuracy(before, after, tokens, seed),
        "perplexity": _perplexity(result),
        "needed_rows": _needed_rows(found, differences, tokens, minimum_rows),
    }
    return result.model_copy(update={name: value for name, value in more.items() if value is not None})


def verdict(low: float, high: float) -> Literal["Improved", "NoChange", "Worse"]:
    """Return Improved or Worse if the whole interval lies on that side of zero, else NoChange."""
    if high < 0:
        return "Improved"
    return "Worse" if low > 0 else "NoChange"


def _by_row(losses: Sequence[RowLoss]) -> list[RowLoss]:
    """Join the examples of each row, in the order of the rows' first examples."""
    rows: dict[int, RowLoss] = {}
    for loss in losses:
        known = rows.get(loss.row)
        rows[loss.row] = (
            loss
            if known is None
            else RowLoss(
                loss.row,
                known.nats + loss.nats,
                known.tokens + loss.tokens,
                None if known.correct is None or loss.correct is None else known.correct + loss.correct,
            )
        )
    return list(rows.values())


def _nats(losses: Sequence[RowLoss]) -> NDArray[np.float64]:
    return np.array([loss.nats for loss in losses], dtype=np.float64)


def _by_row_means(
    before: Sequence[RowLoss], after: Sequence[RowLoss], tokens: NDArray[np.float64], seed: int
) -> PairedResult:
    """Return the means over rows of each row's loss per token: here a short answer counts as much as a long one."""
    first, second = _nats(before) / tokens, _nats(after) / tokens
    return PairedResult(
        base=float(first.mean()),
        tuned=float(second.mean()),
        difference=float((second - first).mean()),
        interval=ratio_interval(second - first, np.ones(len(tokens)), seed),
    )


def _token_accuracy(
    before: Sequence[RowLoss], after: Sequence[RowLoss], tokens: NDArray[np.float64], seed: int
) -> PairedResult | None:
    """Return the shares of supervised tokens that each model finds most likely; None if one was not measured."""
    counts = [[loss.correct for loss in losses] for losses in (before, after)]
    if any(count is None for row in counts for count in row):
        return None
    first, second = (np.array(row, dtype=np.float64) for row in counts)
    low, high = ratio_interval(second - first, tokens, seed)
    return PairedResult(
        base=float(first.sum() / tokens.sum()),
        tuned=float(second.sum() / tokens.sum()),
        difference=float((second - first).sum() / tokens.sum()),
        interval=(max(-1.0, low), min(1.0, high)),
    )


def _perplexity(result: EvaluationResult) -> PerplexityResult | None:
    """Return the exponentials of losses and interval; None if one is too large for a number."""
    low, high = result.interval
    try:
        return PerplexityResult(
            base=math.exp(result.base_loss),
            tuned=math.exp(result.tuned_loss),
            ratio=math.exp(result.difference),
            interval=(math.exp(low), math.exp(high)),
        )
    except OverflowError:
        return None


def _needed_rows(
    found: _Verdict, differences: NDArray[np.float64], tokens: NDArray[np.float64], minimum: int
) -> int | None:
    """Return the rows that a clear verdict needs; None if the verdict is clear, or if no number of rows makes it so."""
    if found not in {"NoChange", "Inconclusive"}:
        return None
    difference, error = (float(part) for part in ratio_estimate(differences, tokens))
    needed = needed_rows(difference, error, len(tokens), minimum)
    return minimum if needed is None and found == "Inconclusive" else needed
