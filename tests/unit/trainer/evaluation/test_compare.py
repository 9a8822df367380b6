"""The verdict on rows that are measured twice."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.evaluation.compare import (
    RowLoss,
    compare,
    mean_loss,
    verdict,
)


def _losses(values: list[float], tokens: list[int]) -> list[RowLoss]:
    return [
        RowLoss(row, value * count, count)
        for row, (value, count) in enumerate(zip(values, tokens, strict=True))
    ]


def test_overall_loss_counts_each_token_once() -> None:
    assert mean_loss([RowLoss(1, 10.0, 10), RowLoss(2, 4.0, 1)]) == pytest.approx(14 / 11)


def test_clear_gain_on_every_row_is_improved() -> None:
    base = _losses([2.0, 2.1, 1.9, 2.2, 2.0, 1.8] * 4, [5, 6, 7, 5, 6, 7] * 4)
    tuned = _losses([0.5, 0.6, 0.4, 0.7, 0.5, 0.4] * 4, [5, 6, 7, 5, 6, 7] * 4)
    comparison = compare(base, tuned, seed=1)
    assert comparison.verdict == "Improved"
    low, high = comparison.interval
    assert low <= comparison.difference <= high < 0
    assert comparison.difference == pytest.approx(comparison.tuned_loss - comparison.base_loss)


def test_exchanging_base_and_tuned_mirrors_the_verdict() -> None:
    base = _losses([2.0, 2.1, 1.9] * 8, [5, 5, 5] * 8)
    tuned = _losses([1.0, 1.2, 0.8] * 8, [5, 5, 5] * 8)
    assert compare(tuned, base, seed=1).verdict == "Worse"


@pytest.mark.parametrize(
    ("rows", "minimum", "expected"),
    [
        (2, 20, "Inconclusive"),
        (19, 20, "Inconclusive"),
        (20, 20, "Improved"),
        (19, 19, "Improved"),
        (30, 31, "Inconclusive"),
    ],
)
def test_too_few_rows_are_inconclusive_however_clear_they_look(
    rows: int, minimum: int, expected: str
) -> None:
    base, tuned = _losses([2.0, 2.2] * 15, [5] * 30)[:rows], _losses([1.0, 1.1] * 15, [5] * 30)[:rows]
    assert compare(base, tuned, 1, minimum).verdict == expected


def test_noise_around_zero_is_no_change() -> None:
    random = np.random.default_rng(0)
    values = [float(value) for value in random.normal(2, 0.1, 30)]
    noise = [value + float(shift) for value, shift in zip(values, random.normal(0, 0.1, 30), strict=True)]
    assert compare(_losses(values, [4] * 30), _losses(noise, [4] * 30), seed=2).verdict == "NoChange"


def test_same_seed_gives_the_same_interval() -> None:
    base, tuned = _losses([2.0, 1.0, 3.0], [3, 4, 5]), _losses([1.5, 1.2, 2.0], [3, 4, 5])
    assert compare(base, tuned, seed=3) == compare(base, tuned, seed=3)


def test_losses_of_different_rows_are_rejected() -> None:
    with pytest.raises(ValueError, match="same rows"):
        compare([RowLoss(1, 1.0, 1)], [RowLoss(2, 1.0, 1)], seed=1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-2, -1, "Improved"), (1, 2, "Worse"), (-1, 1, "NoChange"), (-1, 0, "NoChange"), (0, 1, "NoChange")],
)
def test_an_interval_that_touches_zero_means_no_change(low: float, high: float, expected: str) -> None:
    assert verdict(low, high) == expected
