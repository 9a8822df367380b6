from __future__ import annotations

from datetime import timedelta

from finetune_operator.lifecycle.actions import (
    Action,
    CreateClaim,
    CreateJob,
    DeleteJob,
    ExpandClaim,
    SuspendJob,
)
from finetune_operator.lifecycle.refusals import action_key, delay_after, split_refused
from finetune_operator.observed.observation import Rejection

from tests.support.operator import NOW

EXPAND = ExpandClaim("w", "u", "40Gi")
DELETE = DeleteJob("demo-prepare-0", "u")
CREATE = CreateJob({"metadata": {"name": "demo-train-0"}})


def refused(*actions: Action, seconds: int = 10) -> dict[str, Rejection]:
    return {action_key(action): Rejection("no", NOW + timedelta(seconds=seconds)) for action in actions}


def test_the_delay_doubles_up_to_five_minutes_with_jitter() -> None:
    assert [delay_after(count, 0.5).total_seconds() for count in range(1, 8)] == [
        15,
        30,
        60,
        120,
        240,
        300,
        300,
    ]
    assert delay_after(1, 0) == timedelta(seconds=12)
    assert delay_after(1, 1) == timedelta(seconds=18)
    assert delay_after(10_000, 0.5) == timedelta(minutes=5)


def test_every_action_but_the_two_of_a_creation_has_its_own_key() -> None:
    actions: list[Action] = [
        EXPAND,
        ExpandClaim("w", "u", "50Gi"),
        DELETE,
        SuspendJob("a", "u", True),
        SuspendJob("a", "u", False),
    ]
    report = CreateJob({"metadata": {"name": "demo-report-0"}})
    assert len({action_key(action) for action in [*actions, CREATE, report]}) == 7
    assert action_key(CreateClaim({})) == action_key(CREATE)


def test_a_refused_action_holds_back_itself_and_what_depends_on_it() -> None:
    assert split_refused((EXPAND, DELETE, CREATE), refused(EXPAND), NOW) == ((DELETE,), (EXPAND, CREATE))
    assert split_refused((EXPAND, DELETE, CREATE), refused(DELETE), NOW) == ((EXPAND, CREATE), (DELETE,))


def test_an_action_is_tried_again_at_its_time() -> None:
    later = NOW + timedelta(seconds=10)
    assert split_refused((EXPAND, CREATE), refused(EXPAND), later) == ((EXPAND, CREATE), ())
