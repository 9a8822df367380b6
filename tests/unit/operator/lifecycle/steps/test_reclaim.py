from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import DeleteJob, Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.lifecycle.retry import MAXIMUM_ATTEMPT
from finetune_operator.settings import Settings

from tests.support.operator import NOW, SETTINGS, make_failure, make_spec
from tests.support.world import World, started

PULL = ("ImagePullBackOff", "no such image")
CREATING = ("ContainerCreating", "")


def stuck(waiting: tuple[str, str] | None = PULL, stage: Stage = Stage.TRAIN, **changes: Any) -> World:
    """A world in which this stage's pod has just got a node."""
    world = started(stage, **changes)
    give_node(world, f"demo-{stage.slug}-0", waiting)
    return world


def give_node(world: World, name: str, waiting: tuple[str, str] | None = PULL) -> None:
    """Give the Job's pod a node, on which it does not start."""
    world.run_pod(name, phase="Pending", running=False, waiting=waiting, scheduled=world.now)
    world.settle()


def message(world: World) -> str:
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Stalled")
    return str(entry["message"])


@pytest.mark.parametrize("waiting", [PULL, CREATING, None])
def test_a_gpu_is_taken_back_from_a_pod_that_does_not_start(waiting: tuple[str, str] | None) -> None:
    world = stuck(waiting)
    world.wait(299)
    assert world.decide().actions == ()
    assert world.decide().requeue_time == NOW + timedelta(seconds=300)
    world.wait(1)
    decision = world.step()
    assert [type(action) for action in decision.actions] == [DeleteJob]
    world.settle()
    assert world.condition("Stalled") == ("True", "PodStuck")
    assert world.condition("Reconciling") == ("False", "PodStuck")
    assert world.job.status["phase"] == "Stalled"
    assert (world.children, world.pods) == ({}, {})
    assert "node1" in message(world)
    assert world.decide().requeue_time == world.now + timedelta(seconds=10)


def test_the_cause_is_that_of_the_kubelet_or_of_the_pods_events() -> None:
    world = stuck(CREATING)
    (pod,) = world.pods.values()
    world.warnings = {pod.uid: 'FailedMount: MountVolume.SetUp failed: configmap "rows" not found'}
    world.wait(300)
    world.settle()
    assert 'did not start: FailedMount: MountVolume.SetUp failed: configmap "rows" not found' in message(
        world
    )
    other = stuck()
    other.warnings = dict.fromkeys(other.pods, "BackOff: something older")
    other.wait(300)
    other.settle()
    assert "did not start: ImagePullBackOff: no such image" in message(other)


def test_it_is_tried_again_for_ever_with_growing_delays_and_costs_no_retry() -> None:
    world = stuck(spec=make_spec(lifecycle={"retries": 0}))
    for attempt, delay in enumerate((10, 20, 40, 80, 160, 320, 600, 600, 600)):
        world.wait(300)
        world.settle()
        assert world.children == {}
        assert world.decide().requeue_time == world.now + timedelta(seconds=delay)
        world.wait(delay)
        world.settle()
        assert list(world.children) == [f"demo-train-{attempt + 1}"]
        assert world.condition("Stalled")[0] == "False"
        if attempt < 8:
            give_node(world, f"demo-train-{attempt + 1}")
    world.succeed(Stage.TRAIN, 9)
    world.settle()
    assert world.job.status["stage"]["name"] == "Merge"


def test_a_pod_that_never_started_binds_no_plan_and_counts_as_no_interruption() -> None:
    world = stuck()
    world.wait(300)
    world.settle()
    last = world.job.status["attempts"][-1]
    assert (last["outcome"], last["reason"]) == ("Interrupted", "PodStuck")
    assert "node" not in last
    world.wait(10)
    world.settle()
    world.end_pod("demo-train-1", make_failure(Stage.TRAIN, "Interrupted", 1, outcome="Interrupted"), 75)
    world.settle()
    assert list(world.children) == ["demo-train-2"], "the first interruption goes on at once"


def test_a_pod_without_a_known_cause_gets_twice_the_time_with_each_try() -> None:
    """It may be pulling a large image."""
    world = stuck(CREATING)
    world.wait(300)
    world.settle()
    world.wait(10)
    world.settle()
    give_node(world, "demo-train-1", CREATING)
    assert world.decide().requeue_time == world.now + timedelta(seconds=600)


def test_the_time_is_the_administrators() -> None:
    world = stuck()
    world.settings = Settings(trainer=SETTINGS.trainer, start_seconds=60)
    world.wait(60)
    world.settle()
    assert world.condition("Stalled") == ("True", "PodStuck")


def test_a_watch_that_lags_behind_ends_no_running_pod() -> None:
    world = stuck()
    world.wait(300)
    assert decide(world.observe(), SETTINGS, world.now) is Need.FRESH_CHILDREN
    assert decide(world.observe(fresh=True), SETTINGS, world.now) is Need.POD_WARNINGS


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.MERGE])
def test_a_stage_without_a_gpu_waits_for_what_its_pod_lacks(stage: Stage) -> None:
    world = stuck(stage=stage)
    world.wait(3600)
    world.settle()
    assert list(world.children) == [f"demo-{stage.slug}-0"]
    assert world.condition("Reconciling") == ("True", "PodStuck")


@pytest.mark.parametrize("changes", [{"node": "", "scheduled": None}, {"running": True, "phase": "Running"}])
def test_a_pod_that_has_no_gpu_or_that_runs_is_left_alone(changes: dict[str, Any]) -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0", **{"phase": "Pending", "running": False, "scheduled": NOW, **changes})
    world.settle()
    world.wait(3600)
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_a_job_that_the_user_suspends_and_resumes_is_tried_at_once() -> None:
    world = stuck()
    world.wait(300)
    world.settle()
    for suspend in (True, False):
        world.job = replace(world.job, spec=make_spec(suspend=suspend))
        world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_attempts_begin_again_after_the_last_number() -> None:
    world = stuck()
    stage = {**world.job.status["stage"], "attempt": MAXIMUM_ATTEMPT}
    name = f"demo-train-{MAXIMUM_ATTEMPT}"
    world.children[name] = replace(world.children.pop("demo-train-0"), name=name, attempt=MAXIMUM_ATTEMPT)
    world.job = replace(world.job, status={**world.job.status, "stage": stage})
    world.wait(300)
    world.settle()
    world.wait(10)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
