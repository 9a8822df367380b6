"""The trials of faults strike at the write that they name."""

from __future__ import annotations

import pytest

from tests.support.faults.calls import Call
from tests.support.faults.proxy import Moment
from tests.support.faults.trials import Step, Writes


def moments(number: int, moment: Moment, order: list[tuple[Call, Moment]]) -> list[int]:
    """Positions in `order` at which the step comes."""
    writes = Writes(Step(number, moment))
    return [position for position, each in enumerate(order) if writes.reach(*each)]


@pytest.mark.parametrize(("number", "before", "after"), [(1, 0, 3), (2, 1, 2), (3, 4, 5)])
def test_a_step_is_found_among_writes_that_are_under_way_together(
    number: int, before: int, after: int
) -> None:
    claim, job, status = (Call("POST", "claims"), Call("POST", "jobs"), Call("PATCH", "finetunejobs/status"))
    order = [
        (claim, Moment.BEFORE),
        (job, Moment.BEFORE),
        (job, Moment.AFTER),
        (claim, Moment.AFTER),
        (status, Moment.BEFORE),
        (status, Moment.AFTER),
    ]
    assert moments(number, Moment.BEFORE, order) == [before]
    assert moments(number, Moment.AFTER, order) == [after]
    assert moments(0, Moment.BEFORE, order) == moments(4, Moment.AFTER, order) == []


def test_equal_writes_are_told_apart() -> None:
    first, second = Call("PATCH", "finetunejobs/status"), Call("PATCH", "finetunejobs/status")
    order = [(first, Moment.BEFORE), (second, Moment.BEFORE), (second, Moment.AFTER), (first, Moment.AFTER)]
    assert moments(1, Moment.AFTER, order) == [3]
    assert moments(2, Moment.AFTER, order) == [2]
