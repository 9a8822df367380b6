"""The number of rows that a verdict needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finetune_trainer.evaluation.interval import student_t
from finetune_trainer.evaluation.power import needed_rows


def test_so_many_rows_find_the_difference_in_four_of_five_cases() -> None:
    """Half a standard deviation per row needs about 34 rows (Cohen 1988, table 2.4.1)."""
    rows = needed_rows(-0.5, 1.0, 1, 2)
    assert rows == 34
    random = np.random.default_rng(4)
    found = 0
    for _ in range(2000):
        values = random.normal(-0.5, 1, rows)
        found += values.mean() + student_t(rows - 1) * values.std(ddof=1) / math.sqrt(rows) < 0
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_the_number_does_not_depend_on_the_rows_that_gave_the_error() -> None:
    assert needed_rows(-0.1, 1 / math.sqrt(10), 10, 20) == needed_rows(-0.1, 1 / math.sqrt(1000), 1000, 20)


@pytest.mark.parametrize("minimum", [2, 20, 500])
def test_a_clear_difference_needs_the_minimum(minimum: int) -> None:
    assert needed_rows(-1.0, 0.001, 2, minimum) == max(minimum, 2)


@pytest.mark.parametrize(("difference", "error"), [(0.0, 0.1), (1e-9, 0.1), (math.nan, 0.1), (0.1, math.inf)])
def test_no_number_of_rows_is_enough_without_a_difference(difference: float, error: float) -> None:
    assert needed_rows(difference, error, 20, 20) is None
