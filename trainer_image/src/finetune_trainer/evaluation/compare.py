"""Compares base and tuned model on held-out rows: losses per row, a paired bootstrap, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from finetune_trainer.contract.result import EvaluationResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class RowLoss:
    """Loss of one held-out example: the sum over its supervised tokens in nats, and the number of these tokens."""

    row: int
    nats: float
    tokens: int


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Return the loss in nats per supervised token over all rows. Each token counts once, as in training."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def compare(base: Sequence[RowLoss], tuned: Sequence[RowLoss], seed: int) -> EvaluationResult:
    """Compare two measurements of the same rows in the same order.

    The interval is the 95 % percentile interval of a paired bootstrap over rows (Efron and Tibshirani 1993,
    chapter 13; Koehn 2004 for the pairing). Rows are drawn with replacement, and each draw gives its token-weighted
    mean difference. Raises ValueError if the rows differ.
    """
    if [(loss.row, loss.tokens) for loss in base] != [(loss.row, loss.tokens) for loss in tuned]:
        raise ValueError("base and tuned losses must be of the same rows in the same order")
    differences = np.array([after.nats - before.nats for before, after in zip(base, tuned, strict=True)])
    tokens = np.array([loss.tokens for loss in base], dtype=np.float64)
    draws = bootstrap_means(differences, tokens, seed)
    low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
    return EvaluationResult(
        rows=len(base),
        base_loss=mean_loss(base),
        tuned_loss=mean_loss(tuned),
        difference=float(differences.sum() / tokens.sum()),
        interval=(low, high),
        verdict=verdict(low, high),
    )


def bootstrap_means(sums: NDArray[np.float64], tokens: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the token-weighted mean of each of `RESAMPLES` draws of rows; `sums` and `tokens` are per row."""
    random = np.random.default_rng(seed)
    rows = len(sums)
    means = []
    for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE):
        chosen = random.integers(0, rows, size=(_RESAMPLES_AT_ONCE, rows))
        means.append(sums[chosen].sum(axis=1) / tokens[chosen].sum(axis=1))
    return np.concatenate(means)


def verdict(low: float, high: float) -> Literal["Improved", "NoChange", "Worse"]:
    """Return Improved or Worse if the whole interval lies on that side of zero, else NoChange."""
    if high < 0:
        return "Improved"
    return "Worse" if low > 0 else "NoChange"
