"""The verdict on rows that are measured twice."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.evaluation import interval
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


def test_a_long_answer_outweighs_short_ones_only_in_the_mean_over_tokens() -> None:
    base, tuned = _losses([1.0] * 21, [1] * 20 + [1000]), _losses([1.5] * 20 + [0.5], [1] * 20 + [1000])
    found = compare(base, tuned, seed=1)
    assert found.difference == pytest.approx((20 * 0.5 - 1000 * 0.5) / 1020)
    assert found.by_row is not None
    assert found.by_row.difference == pytest.approx((20 * 0.5 - 0.5) / 21)
    low, high = found.by_row.interval
    assert low <= found.by_row.difference <= high


def test_examples_of_one_row_count_as_one_row() -> None:
    """Otherwise two conversations of 20 turns would pass as 40 independent rows."""
    turns = [RowLoss(row, 1.0, 2, 1) for row in (1, 2) for _ in range(20)]
    better = [RowLoss(row, 0.5, 2, 2) for row in (1, 2) for _ in range(20)]
    found = compare(turns, better, seed=1)
    assert (found.rows, found.verdict) == (2, "Inconclusive")
    uneven = [RowLoss(1, 1.0, 1, 0), RowLoss(2, 2.0, 1, 0), RowLoss(1, 6.0, 3, 1)]
    assert compare(uneven, uneven, seed=1).base_loss == pytest.approx(9 / 5), "every example counts"
    assert found.token_accuracy is not None
    assert (found.token_accuracy.base, found.token_accuracy.tuned) == (0.5, 1.0)


def test_token_accuracy_and_perplexity_have_paired_intervals() -> None:
    random = np.random.default_rng(2)
    base = [RowLoss(row, 20.0 + random.normal(), 10, int(random.integers(2, 6))) for row in range(40)]
    tuned = [
        RowLoss(
            loss.row, loss.nats - 5 + random.normal(), 10, (loss.correct or 0) + int(random.integers(1, 5))
        )
        for loss in base
    ]
    found = compare(base, tuned, seed=1)
    assert found.token_accuracy is not None
    assert found.perplexity is not None
    low, high = found.token_accuracy.interval
    assert 0 < low <= found.token_accuracy.difference <= high <= 1
    assert found.perplexity.base == pytest.approx(np.exp(found.base_loss))
    assert found.perplexity.ratio == pytest.approx(found.perplexity.tuned / found.perplexity.base)
    assert found.perplexity.interval == pytest.approx(tuple(np.exp(found.interval)))


def test_losses_of_an_earlier_trainer_have_no_token_accuracy() -> None:
    base, tuned = _losses([2.0, 1.0, 3.0], [3, 4, 5]), _losses([1.5, 1.2, 2.0], [3, 4, 5])
    assert "tokenAccuracy" not in compare(base, tuned, seed=3).document()


def test_a_loss_beyond_any_perplexity_is_still_compared() -> None:
    found = compare(_losses([800.0, 801.0], [1, 1]), _losses([1.0, 1.1], [1, 1]), seed=1)
    assert found.perplexity is None
    assert found.base_loss == pytest.approx(800.5)


@pytest.mark.parametrize("rows", [2, 5, 19])
def test_an_inconclusive_verdict_names_the_rows_that_are_needed(rows: int) -> None:
    base, tuned = _losses([2.0, 2.2] * 10, [5] * 20)[:rows], _losses([1.0, 1.1] * 10, [5] * 20)[:rows]
    found = compare(base, tuned, seed=1)
    assert found.verdict == "Inconclusive"
    assert found.needed_rows is not None
    assert found.needed_rows >= 20
    same = compare(base, base, seed=1)
    assert same.needed_rows == 20, "without a difference, at least a verdict is possible"


def test_only_a_verdict_that_is_not_clear_needs_more_rows() -> None:
    random = np.random.default_rng(5)
    values = [float(value) for value in random.normal(2, 0.1, 30)]
    noise = [value + float(shift) for value, shift in zip(values, random.normal(0.005, 0.1, 30), strict=True)]
    unclear = compare(_losses(values, [4] * 30), _losses(noise, [4] * 30), seed=2)
    assert unclear.verdict == "NoChange"
    assert unclear.needed_rows is not None
    assert unclear.needed_rows > 30
    clear = compare(_losses(values, [4] * 30), _losses([value - 1 for value in noise], [4] * 30), seed=2)
    assert clear.verdict == "Improved"
    assert clear.needed_rows is None


@pytest.mark.parametrize(("rows", "highest"), [(2, 0.0), (19, 0.0), (20, 0.07), (40, 0.07)])
def test_without_a_difference_the_verdict_is_seldom_wrong(
    monkeypatch: pytest.MonkeyPatch, rows: int, highest: float
) -> None:
    """Rows differ much in difficulty and length, and the two models differ by noise that is skewed to one side."""
    monkeypatch.setattr(interval, "RESAMPLES", 500)
    random = np.random.default_rng(11)
    wrong = 0
    experiments = 400
    for seed in range(experiments):
        tokens = [int(count) for count in random.integers(5, 60, rows)]
        difficulty = random.gamma(2.0, 1.0, rows)
        shift = random.exponential(0.2, rows) - 0.2
        base = _losses([float(value) for value in difficulty + 1], tokens)
        tuned = _losses([float(value) for value in difficulty + 1 + shift], tokens)
        wrong += compare(base, tuned, seed).verdict in {"Improved", "Worse"}
    assert wrong / experiments <= highest


def test_the_pairing_finds_a_gain_that_is_far_below_the_spread_of_the_rows() -> None:
    """The rows' losses differ by 1 nat, and training gains 0.05: without pairs this would take 3,000 rows."""
    random = np.random.default_rng(3)
    difficulty = [float(value) for value in random.normal(3, 1, 40)]
    gained = [
        value - 0.05 + float(noise)
        for value, noise in zip(difficulty, random.normal(0, 0.05, 40), strict=True)
    ]
    base, tuned = _losses(difficulty, [20] * 40), _losses(gained, [20] * 40)
    assert compare(base, tuned, seed=1).verdict == "Improved"
    values = [gained[(place + 1) % 40] for place in range(40)]
    assert compare(base, _losses(values, [20] * 40), seed=1).verdict == "NoChange", "pairs of unlike rows"
