"""An operator with a CRD, a spec or a status of another version never ends, starts or deletes anything by mistake."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import CreateJob, DeleteClaim, DeleteJob, DeletePod, SuspendJob
from finetune_operator.status.events import transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.operator import make_job, make_spec
from tests.support.world import World, started

UNKNOWN = {"unheardOf": "Auto"}
STAGES = {Stage.PREPARE: "demo-prepare-0", Stage.TRAIN: "demo-train-0", Stage.MERGE: "demo-merge-0"}


def running(stage: Stage) -> World:
    """A world whose trainer of `stage` runs."""
    world = started(stage)
    world.run_pod(STAGES[stage])
    world.settle()
    return world


def with_spec(world: World, **changes: Any) -> None:
    world.job = replace(world.job, spec=make_spec(**changes), generation=2)


def finish(world: World) -> None:
    """Let every stage that is left succeed."""
    for stage, name in STAGES.items():
        if name in world.children:
            world.succeed(stage)
            world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")


def disturbs(world: World) -> list[object]:
    """The actions of one decision that stop, start or delete something."""
    kinds = (CreateJob, DeleteJob, DeletePod, DeleteClaim, SuspendJob)
    return [action for action in world.step().actions if isinstance(action, kinds)]


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_new_field_with_a_default_is_ignored_and_said_once(stage: Stage) -> None:
    world = running(stage)
    with_spec(world, training=UNKNOWN)
    before = world.job.status
    assert disturbs(world) == []
    assert world.condition("FieldsIgnored") == ("True", "UnknownFields")
    assert world.condition("Succeeded")[0] == "Unknown"
    (event,) = transitions(before, world.job.status)
    assert (event.type, event.reason) == ("Warning", "UnknownFields")
    assert "spec.training.unheardOf" in event.message
    before = world.job.status
    world.step()
    assert transitions(before, world.job.status) == []
    finish(world)
    assert world.created == list(STAGES.values())


def test_the_newer_operator_says_that_nothing_is_ignored_any_more() -> None:
    world = running(Stage.TRAIN)
    with_spec(world, training=UNKNOWN)
    world.settle()
    with_spec(world)
    world.settle()
    assert world.condition("FieldsIgnored") == ("False", "FieldsKnown")
    finish(world)


def test_a_job_without_unknown_fields_has_no_such_condition() -> None:
    world = running(Stage.PREPARE)
    assert "FieldsIgnored" not in {entry["type"] for entry in world.job.status["conditions"]}


UNREADABLE: dict[str, dict[str, Any]] = {
    "a new value of an enum": {"training": {"quantization": "FP8"}},
    "a changed type": {"training": {"lora": ["q", "v"]}},
    "a source of a new kind": {"dataset": {"source": {"oci": {"image": "a"}}}},
    "a new required field": {"output": {"artifacts": ["Adapter"]}},
}


@pytest.mark.parametrize("stage", WORK_STAGES)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_running_job_that_cannot_be_read_is_left_alone_until_it_can(kind: str, stage: Stage) -> None:
    world = running(stage)
    with_spec(world, **UNREADABLE[kind])
    for _ in range(3):
        assert disturbs(world) == []
        world.wait(3600)
    assert world.condition("Succeeded") == ("Unknown", "VersionSkew")
    assert world.job.status["stage"]["name"] == stage
    with_spec(world)
    world.settle()
    finish(world)
    assert world.created == list(STAGES.values())


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_new_job_that_cannot_be_read_waits_for_its_operator(kind: str) -> None:
    world = World(job=make_job(spec=make_spec(**UNREADABLE[kind])))
    world.settle()
    assert world.created == []
    assert world.condition("Succeeded") == ("Unknown", "VersionSkew")
    with_spec(world)
    world.settle()
    assert world.created == ["demo-prepare-0"]


STRICTER: dict[str, dict[str, Any]] = {
    "a bound": {"lifecycle": {"keepChildrenSeconds": {"failure": -5}}},
    "a rule between fields": {"training": {"effectiveBatchSize": 16, "microBatchSize": 3}},
    "a form": {"workspace": {"storageClassName": ""}},
}


@pytest.mark.parametrize("stage", WORK_STAGES)
@pytest.mark.parametrize("kind", STRICTER)
def test_a_rule_that_became_stricter_does_not_end_an_accepted_job(kind: str, stage: Stage) -> None:
    world = running(stage)
    with_spec(world, **STRICTER[kind])
    assert disturbs(world) == []
    finish(world)
    assert world.created == list(STAGES.values())


@pytest.mark.parametrize("kind", STRICTER)
def test_a_job_whose_status_was_lost_counts_as_accepted_by_its_jobs(kind: str) -> None:
    world = running(Stage.PREPARE)
    world.job = replace(world.job, spec=make_spec(**STRICTER[kind]), status={})
    assert disturbs(world) == []
    assert world.condition("Succeeded")[0] == "Unknown"


@pytest.mark.parametrize("kind", STRICTER)
def test_a_new_job_that_breaks_a_rule_is_invalid(kind: str) -> None:
    world = World(job=make_job(spec=make_spec(**STRICTER[kind])))
    world.settle()
    assert world.condition("Succeeded") == ("False", "InvalidSpec")


STATUSES: dict[str, dict[str, Any]] = {
    "a stage that this version does not have": {
        "stage": {"name": "Evaluate", "attempt": 0, "jobName": "demo-evaluate-0"}
    },
    "a stage of another form": {"stage": ["Train", 0]},
    "a plan of another form": {"plan": {"training": {"microBatch": {"size": 4}}}},
    "a config that is no JSON": {"model": {"config": "sha256:..."}},
    "waits of another form": {"waiting": {"totalSeconds": "1h"}},
}


@pytest.mark.parametrize("kind", STATUSES)
def test_a_status_of_another_version_is_left_as_it_is(kind: str) -> None:
    world = running(Stage.TRAIN)
    ours = world.job.status
    world.job = replace(world.job, status={**ours, **copy.deepcopy(STATUSES[kind])})
    assert disturbs(world) == []
    assert world.condition("Succeeded") == ("Unknown", "VersionSkew")
    for name, value in STATUSES[kind].items():
        assert world.job.status[name] == value
    world.job = replace(
        world.job, status={**world.job.status, **{name: ours.get(name) for name in STATUSES[kind]}}
    )
    world.settle()
    finish(world)


def test_unknown_members_and_conditions_of_a_status_are_kept() -> None:
    world = running(Stage.TRAIN)
    later = {
        "type": "Evaluated",
        "status": "True",
        "reason": "Done",
        "message": "",
        "lastTransitionTime": "2026-11-24T09:00:00Z",
    }
    status = {**world.job.status, "evaluations": [1], "conditions": [*world.job.status["conditions"], later]}
    world.job = replace(world.job, status=status)
    finish(world)
    assert world.job.status["evaluations"] == [1]
    assert later in world.job.status["conditions"]


def test_conditions_that_cannot_be_read_are_not_overwritten() -> None:
    world = running(Stage.TRAIN)
    world.job = replace(world.job, status={**world.job.status, "conditions": [{"kind": "Succeeded"}]})
    decision = world.step()
    assert (decision.status, decision.actions) == (None, ())
    assert decision.problem is not None


def test_a_finished_job_of_another_version_keeps_its_status() -> None:
    world = running(Stage.TRAIN)
    finish_train = copy.deepcopy(world)
    finish(finish_train)
    for spec in (make_spec(training={"quantization": "FP8"}), make_spec(training=UNKNOWN)):
        other = copy.deepcopy(finish_train)
        before = dict(other.job.status)
        other.job = replace(other.job, spec=spec)
        other.settle()
        assert other.job.status == before


VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just([]) | st.just({}) | st.just([1])
)


def paths(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all members, at any depth."""
    found = []
    for name, item in value.items():
        found.append((*prefix, name))
        if isinstance(item, dict):
            found += paths(item, (*prefix, name))
    return found


def edited(document: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of `document` with another value at `path`, or without it if the value is None."""
    result = copy.deepcopy(document)
    parent = result
    for name in path[:-1]:
        parent = parent[name]
    if value is None:
        parent.pop(path[-1], None)
    else:
        parent[path[-1]] = value
    return result


BASE = running(Stage.TRAIN)
FULL = make_spec(
    training={"lora": {"rank": 8}, "quantization": "NF4"},
    lifecycle={"retries": 1, "keepChildrenSeconds": {"failure": 0}},
    podTemplate={"labels": {"team": "a"}, "tolerations": [{"operator": "Exists"}]},
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(paths(FULL)), VALUES)
def test_no_edit_of_a_spec_ends_or_disturbs_a_running_job(path: tuple[str, ...], value: Any) -> None:
    world = copy.deepcopy(BASE)
    world.job = replace(world.job, spec=edited(FULL, path, value))
    disturbed = [action for action in disturbs(world) if not isinstance(action, SuspendJob)]
    assert disturbed == []
    assert world.condition("Succeeded")[0] == "Unknown"
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    finish(world)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(paths(dict(BASE.job.status))), VALUES.filter(lambda value: value is not None))
def test_no_edit_of_a_status_raises(path: tuple[str, ...], value: Any) -> None:
    world = copy.deepcopy(BASE)
    world.job = replace(world.job, status=edited(dict(world.job.status), path, value))
    decision = world.decide()
    assert decision.problem is not None or decision.status is not None
