from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.runtime.health import (
    LAG_LIMIT,
    LEASE_LIMIT,
    WATCH_LIMIT,
    WORK_LIMIT,
    Role,
    Vitals,
    liveness,
    readiness,
)

LEADER = Vitals(
    role=Role.LEADER, seeded=True, watches=dict.fromkeys(("jobs", "pods"), 60.0), lease_age=2.0, loop_lag=0.01
)


@pytest.mark.parametrize(
    "vitals", [LEADER, Vitals(), Vitals(role=Role.STANDBY), replace(LEADER, lease_age=None)]
)
def test_a_working_replica_is_live(vitals: Vitals) -> None:
    assert liveness(vitals) == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"longest_work": WORK_LIMIT + 1}, "a reconcile has taken 301 s"),
        ({"loop_lag": LAG_LIMIT + 1}, "the event loop is late by 6 s"),
        ({"watches": {"jobs": 0.0, "pods": WATCH_LIMIT + 1}}, "the watch of pods has shown no sign of life"),
        ({"lease_age": LEASE_LIMIT + 1}, "the Lease was last renewed 31 s ago"),
    ],
)
def test_each_fault_of_the_process_is_named(change: dict[str, object], problem: str) -> None:
    (found,) = liveness(replace(LEADER, **change))  # type: ignore[arg-type]  # one field of a type of its own
    assert problem in found


def test_all_faults_are_named_together() -> None:
    broken = Vitals(
        role=Role.LEADER, longest_work=1e6, loop_lag=1e6, watches={"pods": 1e6, "jobs": 1e6}, lease_age=1e6
    )
    assert len(liveness(broken)) == 5


@pytest.mark.parametrize(
    "edge",
    [
        {"longest_work": WORK_LIMIT},
        {"loop_lag": LAG_LIMIT},
        {"watches": {"pods": WATCH_LIMIT}},
        {"lease_age": LEASE_LIMIT},
    ],
)
def test_a_value_at_its_limit_is_healthy(edge: dict[str, object]) -> None:
    assert liveness(replace(LEADER, **edge)) == ()  # type: ignore[arg-type]  # one field of a type of its own


@pytest.mark.parametrize(
    ("vitals", "problem"),
    [
        (Vitals(), "neither leads nor stands by"),
        (Vitals(role=Role.LEADER), "still being filled"),
        (Vitals(role=Role.STANDBY), None),
        (LEADER, None),
        (replace(LEADER, watches={"pods": 1e6}), None),
    ],
)
def test_a_replica_is_ready_if_it_stands_by_or_leads_with_a_filled_store(
    vitals: Vitals, problem: str | None
) -> None:
    found = readiness(vitals)
    assert found == () if problem is None else problem in found[0]
