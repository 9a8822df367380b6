"""A rank that is slower than the others."""

from __future__ import annotations

import pytest
from finetune_trainer.stages.train.ranks.stragglers import STEPS, Stragglers, slow_ranks


def test_a_rank_that_is_slow_in_most_steps_is_found_with_its_ratio() -> None:
    steps = [[0.2, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2]]
    assert slow_ranks(steps) == {1: pytest.approx(2.5)}


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [[0.5]] * 3,
        [[0.5, 0.5]] * 3,
        [[0.2, 0.2], [0.2, 9.0], [0.2, 0.2]],
        [[0.010, 0.030]] * 3,
        [[0.0, 0.0]] * 3,
    ],
    ids=["no step", "one rank", "equal", "one slow step", "too small to matter", "not measured"],
)
def test_no_rank_is_slow(steps: list[list[float]]) -> None:
    assert slow_ranks(steps) == {}


def test_a_slow_rank_is_logged_once_until_it_recovers(caplog: pytest.LogCaptureFixture) -> None:
    stragglers = Stragglers()
    for seconds in ((0.2, 0.2, 0.8), (0.2, 0.2, 0.8), (0.2, 0.2, 0.2), (0.2, 0.2, 0.8)):
        for _ in range(STEPS):
            stragglers.add(seconds)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all("rank 2 takes 4.0 times as long" in text for text in texts)
