from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import pytest
from finetune_operator.api.reasons import ReasonClass
from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Result
from finetune_operator.observed.observation import Pod
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.observed.pod_ends import pod_ends, precedence

from tests.support.operator import NOW, make_failure
from tests.support.world import started

End = tuple[Pod, AttemptOutcome]


def pod(index: int, **changes: Any) -> Pod:
    world = started(Stage.TRAIN)
    return replace(world.run_pod("demo-train-0"), index=index, node=f"gpu{index}", **changes)


def end(
    index: int,
    outcome: Literal["Succeeded", "Failed", "Interrupted"] = "Failed",
    seconds: float | None = 0.0,
    rank: int | None = None,
    **changes: Any,
) -> End:
    """The end of a pod, so many seconds after NOW; None if nobody knows when."""
    document = make_failure(Stage.TRAIN, "InternalError")
    result = Result.model_validate({**document, **({} if rank is None else {"rank": rank})})
    finished = None if seconds is None else NOW + timedelta(seconds=seconds)
    return pod(index, **changes), AttemptOutcome(
        outcome, ReasonClass.RETRYABLE, "InternalError", "", result, 69, f"gpu{index}", finished
    )


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ([end(0, seconds=1), end(1, seconds=0)], 1),
        ([end(0, seconds=None), end(1, seconds=9)], 1),
        ([end(0, "Interrupted", seconds=0), end(1, seconds=9)], 1),
        ([end(0), end(1, rank=5)], 1),
        ([end(0, seconds=0), end(1, seconds=1, rank=5)], 0),
        ([end(0, "Interrupted", seconds=0), end(1, "Interrupted", seconds=1, rank=5)], 1),
        (
            [
                end(0, "Interrupted", seconds=0, rank=1),
                end(1, "Interrupted", seconds=1, disrupted=True),
            ],
            1,
        ),
        ([end(1), end(0)], 0),
    ],
    ids=[
        "the earlier end",
        "a known time before an unknown one",
        "a failure before those that were interrupted by it",
        "of two in one second, the one that names its rank",
        "an earlier end before one that names its rank",
        "of the interrupted, the one that names its rank",
        "a disruption before those that it interrupts",
        "nothing tells, so the lower number",
    ],
)
def test_the_pod_that_failed_first_is_told_from_those_that_followed(ends: list[End], first: int) -> None:
    for order in (ends, ends[::-1]):
        found = pod_ends(sorted(order, key=lambda each: precedence(*each)))
        assert [each.first for each in found] == [True, False]
        assert found[0].index == first


def test_an_end_has_what_is_known_of_it() -> None:
    (found,) = pod_ends([end(1, rank=3)])
    assert (found.index, found.node, found.rank, found.reason) == (1, "gpu1", 3, "InternalError")
    assert (found.exit_code, found.finished) == (69, NOW)


def test_a_pod_that_succeeded_is_not_listed() -> None:
    assert [each.index for each in pod_ends([end(0, "Succeeded"), end(1)])] == [1]


def test_pods_that_somebody_added_or_numbered_stay_within_bounds() -> None:
    one = end(0)
    many = [(replace(one[0], index=index), one[1]) for index in range(200)]
    assert [each.index for each in pod_ends(many)] == list(range(64))
    assert pod_ends([(replace(one[0], index=99_999), one[1])]) == ()
