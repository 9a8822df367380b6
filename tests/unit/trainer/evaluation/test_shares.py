"""The interval of a paired difference of shares; its coverage is simulated with fixed seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from finetune_trainer.evaluation.shares import share_interval

EXPERIMENTS = 2_000


@cache
def _interval(better: int, worse: int, same: int) -> tuple[float, float]:
    return share_interval([1.0] * better + [-1.0] * worse + [0.0] * same)


@pytest.mark.parametrize("rows", [5, 10, 20, 32, 100])
@pytest.mark.parametrize(
    ("better", "worse"), [(0.0, 0.0), (0.05, 0.05), (0.3, 0.1), (0.5, 0.0), (0.9, 0.0), (0.02, 0.0)]
)
def test_the_interval_of_yes_and_no_covers_the_truth(rows: int, better: float, worse: float) -> None:
    random = np.random.default_rng(7)
    held = 0
    for gained, lost, same in random.multinomial(rows, [better, worse, 1 - better - worse], EXPERIMENTS):
        low, high = _interval(int(gained), int(lost), int(same))
        held += low <= better - worse <= high
    assert held / EXPERIMENTS >= 0.93


def test_the_interval_of_partial_shares_covers_the_truth() -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(EXPERIMENTS):
        low, high = share_interval((random.beta(0.5, 0.5, 20) - random.beta(2, 2, 20)).tolist())
        held += low <= 0 <= high
    assert held / EXPERIMENTS >= 0.93


def test_rows_that_all_agree_leave_doubt() -> None:
    low, high = share_interval([1.0] * 20)
    assert 0.6 < low < 0.9
    assert high == 1.0
    low, high = share_interval([0.0] * 20)
    assert low == -high < 0


def test_many_rows_leave_little_doubt() -> None:
    low, high = share_interval([1.0, 0.0] * 500)
    assert low == pytest.approx(0.469, abs=0.003)
    assert high == pytest.approx(0.531, abs=0.003)


def test_no_row_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        share_interval([])
