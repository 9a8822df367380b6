"""The benchmark of TRAIN's own work runs, and its turns are fair."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.train_overhead import Turn, Turns, main, summary


@pytest.mark.slow
def test_both_loops_take_as_many_turns() -> None:
    (line,) = main(["--only", "deep", "--rounds", "2"])
    assert line["batching"] == "Packed"
    assert line["rounds"] == 2
    for kind in ("processor", "wall"):
        low, high = line[kind]["interval"]
        assert 0 < low <= line[kind]["ratio"] <= high
        assert line[kind]["bareMilliseconds"] > 0


def test_the_order_of_the_loops_turns_round_after_round() -> None:
    steps: list[str] = []

    def bare() -> object:
        while True:
            steps.append("bare")
            yield

    turns = Turns(4, 2, bare)  # type: ignore[arg-type]  # any iterator
    for step in range(turns.all_steps):
        turns.on_step_begin(None, SimpleNamespace(global_step=step), None)
        steps.append("ours")
    without_warm_up = "".join(step[0] for step in steps[4:])
    assert without_warm_up == "bboooobbbboooobbo"
    assert len(turns.ours) == len(turns.bare) == 4


def test_the_summary_has_the_ratio_of_the_sums() -> None:
    found = summary([Turn(2.2, 4.0), Turn(2.0, 4.0)], [Turn(2.0, 4.0), Turn(2.0, 4.0)], steps=2)
    assert found["processor"] == {
        "oursMilliseconds": 1050.0,
        "bareMilliseconds": 1000.0,
        "differenceMilliseconds": 50.0,
        "ratio": 1.05,
        "interval": [1.0, 1.1],
    }
    assert found["wall"]["interval"] == [1.0, 1.0]
