"""Coverage is simulated with fixed seeds: 2,000 experiments of each kind, of which 95 % should hold the true mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from finetune_trainer.evaluation import interval
from finetune_trainer.evaluation.interval import ratio_interval, student_t
from numpy.typing import NDArray

EXPERIMENTS = 2_000
DIFFERENCES: dict[str, tuple[Callable[[np.random.Generator, int], NDArray[np.float64]], float]] = {
    "normal": (lambda random, rows: random.normal(size=rows), 0.0),
    "exponential": (lambda random, rows: random.exponential(size=rows), 1.0),
    "student3": (lambda random, rows: random.standard_t(3, size=rows), 0.0),
}


def coverage(kind: str, rows: int, *, equal: bool) -> float:
    draw, mean = DIFFERENCES[kind]
    random = np.random.default_rng(7)
    held = 0
    for seed in range(EXPERIMENTS):
        tokens = np.ones(rows) if equal else np.round(np.exp(random.normal(3, 0.6, size=rows))) + 1
        low, high = ratio_interval(draw(random, rows) * tokens, tokens, seed)
        held += low <= mean <= high
    return held / EXPERIMENTS


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False], ids=["equal lengths", "unequal lengths"])
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("normal", 20), ("student3", 20), ("exponential", 50)],
)
def test_the_interval_holds_the_true_mean_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rows: int,
    equal: bool,  # noqa: FBT001 -- a table of cases
) -> None:
    monkeypatch.setattr(interval, "RESAMPLES", 500)
    assert 0.93 <= coverage(kind, rows, equal=equal) <= 0.99


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (6, 2.447), (7, 2.3646), (9, 2.2622), (19, 2.093), (199, 1.972)],
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=2e-3)


def test_the_width_is_that_of_theory_for_many_normal_rows() -> None:
    values = np.random.default_rng(5).normal(0, 1, 400)
    low, high = ratio_interval(values, np.ones(400), seed=9)
    assert (high - low) / 2 == pytest.approx(1.966 * float(values.std(ddof=1)) / 20, rel=0.05)


def test_a_skewed_sample_reaches_further_to_its_long_side() -> None:
    values = np.random.default_rng(3).exponential(size=30)
    low, high = ratio_interval(values, np.ones(30), seed=1)
    assert high - values.mean() > 1.2 * (values.mean() - low)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.5] * 40])
def test_rows_without_spread_have_no_width(values: list[float]) -> None:
    assert ratio_interval(np.array(values), np.ones(len(values)), seed=1) == (0.5, 0.5)


def test_one_row_with_almost_all_tokens_makes_the_interval_wide() -> None:
    values, tokens = np.array([1.0, 2.0, 3.0, 400.0]), np.array([1.0, 1.0, 1.0, 1000.0])
    low, high = ratio_interval(values, tokens, seed=1)
    assert high - low > 1
