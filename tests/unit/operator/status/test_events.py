from __future__ import annotations

import copy
import json
from typing import Any

from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.status.events import Transition, transitions

from tests.support.operator import MERGE, MERGE_PROVEN, PREPARE
from tests.support.world import World, started


def test_each_transition_is_reported_once() -> None:
    world, found = World(), []
    for stage in WORK_STAGES:
        for _ in range(3):
            before = world.job.status
            world.step()
            found += transitions(before, world.job.status)
        world.succeed(stage)
    before = world.job.status
    world.settle()
    found += transitions(before, world.job.status)
    assert [transition.reason for transition in found] == [
        "Pending",
        "StageSucceeded",
        "DatasetWarnings",
        "Training",
        "StageSucceeded",
        "Merging",
        "StageSucceeded",
        "Completed",
    ]
    warnings = [transition for transition in found if transition.type == "Warning"]
    assert [warning.reason for warning in warnings] == ["DatasetWarnings"]
    assert "RowsRefused" in warnings[0].message


def test_a_dataset_without_warnings_has_no_event() -> None:
    world = World()
    world.settle()
    prepare = copy.deepcopy(PREPARE)
    prepare["dataset"]["warnings"] = []
    before = world.job.status
    world.succeed(Stage.PREPARE, prepare=prepare)
    world.settle()
    assert "DatasetWarnings" not in {change.reason for change in transitions(before, world.job.status)}


def test_a_failure_is_a_warning_with_its_message() -> None:
    world = World()
    world.settle()
    world.fail(Stage.PREPARE, "InvalidDataset")
    before = world.job.status
    world.settle()
    (transition,) = transitions(before, world.job.status)
    assert (transition.type, transition.reason) == ("Warning", "InvalidDataset")
    assert json.dumps(transition.message) == '"must not be InvalidDataset"'


def merged(merge: dict[str, Any]) -> list[Transition]:
    world = started(Stage.MERGE)
    before = world.job.status
    world.succeed(Stage.MERGE, merge=merge)
    world.settle()
    assert transitions(world.job.status, world.job.status) == []
    return transitions(before, world.job.status)


def test_a_warning_about_a_merged_model_is_an_event_with_its_message() -> None:
    (found,) = [event for event in merged(MERGE_PROVEN) if event.reason == "MergeWarnings"]
    assert found.type == "Warning"
    assert found.message.startswith("UpdateLostInTensor: model.layers.0.self_attn.q_proj.weight")


def test_a_merge_without_warnings_has_no_such_event() -> None:
    assert "MergeWarnings" not in {event.reason for event in merged(MERGE)}


def test_a_training_on_another_rung_says_so_in_its_event() -> None:
    attempt = {
        "stage": "Train",
        "attempt": 0,
        "outcome": "Succeeded",
        "rung": {"microBatchSize": 1, "gradientCheckpointing": True},
        "failedRungs": [{"microBatchSize": 2, "gradientCheckpointing": True, "activity": "ProbingMemory"}],
    }
    (found,) = transitions({}, {"attempts": [attempt]})
    assert (found.type, found.reason) == ("Normal", "StageSucceeded")
    assert found.message == (
        "attempt 0 of Train succeeded with micro-batches of 1 with gradient checkpointing, because the GPU was out of "
        "memory with micro-batches of 2 with gradient checkpointing (ProbingMemory)"
    )


def test_a_warning_about_the_plan_is_an_event_once() -> None:
    warned = {"plan": {"warnings": ["training.learningRate 0.01 is above 0.003"]}}
    (event,) = transitions({}, warned)
    assert (event.type, event.reason) == ("Warning", "PlanWarnings")
    assert "above 0.003" in event.message
    assert transitions(warned, warned) == []
