"""The benchmark of several ranks runs, and both of its loops train on the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.passes import StepCollator
from finetune_trainer.stages.train.ranks.group import Ranks

from benchmarks.ranks import main, own_rows, together
from benchmarks.train_overhead import Turn


class _Rank(Ranks):
    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.mark.slow
def test_both_loops_of_two_ranks_take_as_many_turns() -> None:
    (line,) = main(["--only", "deep", "--rounds", "1"])
    assert (line["processes"], line["rounds"], line["batching"]) == (2, 1, "Packed")
    for kind in ("processor", "wall"):
        assert line[kind]["ratio"] > 0
        assert line[kind]["bareMilliseconds"] > 0


def test_the_bare_loop_has_the_passes_of_the_trainer() -> None:
    rows: list[Any] = [
        {"input_ids": list(range(length)), "labels": [-100, *range(1, length)]}
        for length in (7, 3, 5, 2, 6, 4, 9)
    ]
    batching = Batching("Packed", 12, 2)
    for rank in map(_Rank, (0, 1)):
        shares, learned = own_rows(rows, 4, rank)
        assert len(shares) == 2
        for step, (share, tokens) in enumerate(zip(shares, learned, strict=True)):
            expected = StepCollator(batching, rank)(rows[4 * step : 4 * step + 4])
            found = StepCollator(batching)([rows[row] for row in share])
            assert tokens == expected.learned
            assert [each.input_ids.tolist() for each in found.passes] == [
                each.input_ids.tolist() for each in expected.passes
            ]


def test_ranks_add_processor_time_and_the_slowest_one_has_the_wall_time() -> None:
    ranks = [[Turn(1.0, 3.0), Turn(2.0, 2.0)], [Turn(0.5, 4.0), Turn(0.25, 1.0)]]
    assert together(ranks) == [Turn(1.5, 4.0), Turn(2.25, 2.0)]
