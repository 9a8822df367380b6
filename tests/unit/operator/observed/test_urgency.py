from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.observed.urgency import Urgency, child_urgency, job_urgency, pod_urgency

from tests.support.operator import make_job
from tests.support.world import World


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deleting": True}, Urgency.ENDING),
        ({"status": {}}, Urgency.EDIT),
        ({"status": {"observedGeneration": 3}, "generation": 4}, Urgency.EDIT),
        ({"status": {"observedGeneration": 4}, "generation": 4}, Urgency.PROGRESS),
        ({"status": {"observedGeneration": "odd"}, "generation": 4}, Urgency.EDIT),
    ],
)
def test_a_deletion_is_more_urgent_than_an_edit_and_an_edit_than_a_status(
    changes: dict[str, object], expected: Urgency
) -> None:
    assert job_urgency(replace(make_job(), **changes)) is expected  # type: ignore[arg-type]  # from a table


def test_the_end_and_the_deletion_of_a_child_are_endings() -> None:
    world = World()
    world.settle()
    child = next(iter(world.children.values()))
    assert child_urgency(child) is Urgency.PROGRESS
    assert child_urgency(replace(child, finished=True)) is Urgency.ENDING
    assert child_urgency(replace(child, deleting=True)) is Urgency.ENDING


@pytest.mark.parametrize("changes", [{"phase": "Failed"}, {"deleting": True}, {"disrupted": True}])
def test_the_end_of_a_pod_is_an_ending_however_it_ends(changes: dict[str, object]) -> None:
    world = World()
    world.settle()
    pod = world.run_pod("demo-prepare-0")
    assert pod_urgency(pod) is Urgency.PROGRESS
    assert pod_urgency(replace(pod, **changes)) is Urgency.ENDING  # type: ignore[arg-type]  # from a table
    world.fail(Stage.PREPARE, "InvalidDataset")
    assert pod_urgency(world.pods[pod.uid]) is Urgency.ENDING
