from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.obstacles import PREVIOUS, Obstacle, find_obstacle
from finetune_operator.observed.observation import Claim, Observation
from finetune_operator.status.draft import StatusDraft

from tests.support.operator import NOW, UID, make_inventory, make_job
from tests.support.world import started

SECOND = timedelta(seconds=1)


def find(*, own_claim: bool = True, **observed: Any) -> Obstacle | None:
    job = make_job()
    observation = Observation(job=job, inventory=make_inventory(), **observed)
    return find_obstacle(observation, StatusDraft.begin(job, NOW), own_claim=own_claim)


def make_claim(owner: str, *, deleting: bool = False) -> Claim:
    return Claim("demo-workspace", "claim", owner, "5", deleting)


def test_nothing_is_in_the_way_of_a_new_job() -> None:
    assert find() is None
    assert find(claim=make_claim(UID)) is None


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, True),
        ({"deleting": True}, True),
        ({"running": False, "phase": "Pending", "node": ""}, True),
        ({"running": False, "phase": "Failed"}, False),
    ],
)
def test_a_pod_is_in_the_way_until_its_trainer_has_ended(
    changes: dict[str, Any],
    blocks: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    world = started(Stage.TRAIN)
    pod = replace(world.run_pod("demo-train-0"), owner_uid="a Job that is gone", **changes)
    found = find(pods=(pod,))
    assert (found is not None) == blocks
    if found is not None:
        assert found.awaited == f"pod {pod.name} to end"


@pytest.mark.parametrize("kind", ["pod", "Job", "claim"])
def test_objects_of_an_earlier_job_of_the_same_name_are_awaited_for_a_second(kind: str) -> None:
    world = started(Stage.TRAIN)
    pod = replace(world.run_pod("demo-train-0"), owner_uid="gone", created=NOW - timedelta(minutes=1))
    child = replace(world.children["demo-train-0"], owner_uid="earlier")
    choices: dict[str, dict[str, Any]] = {
        "pod": {"pods": (pod,)},
        "Job": {"children": (child,)},
        "claim": {"previous_claim": make_claim("earlier")},
    }
    assert find(**choices[kind]) == Obstacle(PREVIOUS, SECOND)


def test_a_workspace_that_the_user_provides_is_not_awaited() -> None:
    assert find(previous_claim=make_claim("earlier"), own_claim=False) is None
    own = find(claim=make_claim(UID, deleting=True))
    assert own is not None
    assert own.awaited == "claim demo-workspace to be deleted"


def test_a_job_of_an_unrecorded_attempt_is_awaited() -> None:
    child = started(Stage.TRAIN).children["demo-train-0"]
    found = find(children=(child,))
    assert found is not None
    assert found.awaited == "Job demo-train-0 to be deleted"
