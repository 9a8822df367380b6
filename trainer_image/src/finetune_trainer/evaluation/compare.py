"""Compares base and tuned model on held-out rows: losses per row, a paired interval, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from finetune_trainer.contract.result import EvaluationResult
from finetune_trainer.evaluation.interval import ratio_interval

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class RowLoss:
    """Loss of one held-out example: the sum over its supervised tokens in nats, and the number of these tokens."""

    row: int
    nats: float
    tokens: int


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Return the loss in nats per supervised token over all rows. Each token counts once, as in training."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def compare(
    base: Sequence[RowLoss], tuned: Sequence[RowLoss], seed: int, minimum_rows: int = 20
) -> EvaluationResult:
    """Compare two measurements of the same rows in the same order.

    Rows are paired (Koehn 2004), and the 95 % interval is that of `interval.ratio_interval`: each token counts once. Raises
    ValueError if the rows differ.
    """
    if [(loss.row, loss.tokens) for loss in base] != [(loss.row, loss.tokens) for loss in tuned]:
        raise ValueError("base and tuned losses must be of the same rows in the same order")
    differences = np.array([after.nats - before.nats for before, after in zip(base, tuned, strict=True)])
    tokens = np.array([loss.tokens for loss in base], dtype=np.float64)
    low, high = ratio_interval(differences, tokens, seed)
    return EvaluationResult(
        rows=len(base),
        base_loss=mean_loss(base),
        tuned_loss=mean_loss(tuned),
        difference=float(differences.sum() / tokens.sum()),
        interval=(low, high),
        verdict=verdict(low, high) if len(base) >= minimum_rows else "Inconclusive",
    )


def verdict(low: float, high: float) -> Literal["Improved", "NoChange", "Worse"]:
    """Return Improved or Worse if the whole interval lies on that side of zero, else NoChange."""
    if high < 0:
        return "Improved"
    return "Worse" if low > 0 else "NoChange"
