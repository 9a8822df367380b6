from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import Decision, DeleteJob, Need, SuspendJob
from finetune_operator.lifecycle.decide import decide

from tests.support.operator import make_inventory, make_spec
from tests.support.world import LARGE, World, preparing, stalled, started

QUEUES = {"queueName": "gpus", "cpuQueueName": "cpus"}


def queued(stage: Stage, **changes: Any) -> World:
    """A world in which Kueue has admitted all stages before this one, whose Job waits."""
    world = World(job=replace(started().job, spec=make_spec(**QUEUES, **changes), status={}))
    for earlier in WORK_STAGES:
        world.settle()
        if earlier is stage:
            return world
        admit(world)
        world.succeed(earlier)
    raise AssertionError(stage)


def admit(world: World) -> str:
    """Let Kueue admit the Job that waits. Return its name."""
    (child,) = world.children.values()
    assert child.suspended
    world.children[child.name] = replace(child, suspended=False)
    return child.name


def suspend(world: World, *, value: bool = True) -> None:
    world.job = replace(world.job, spec={**world.job.spec, "suspend": value})


@pytest.mark.parametrize(
    ("stage", "queue"), [(Stage.PREPARE, "cpus"), (Stage.TRAIN, "gpus"), (Stage.MERGE, "cpus")]
)
def test_a_job_that_waits_in_a_queue_leaves_it_when_the_user_suspends(stage: Stage, queue: str) -> None:
    world = queued(stage)
    (child,) = world.children.values()
    assert (child.queue, child.suspended, child.held) == (queue, True, False)
    suspend(world)
    decision = world.step()
    assert decision.actions == (DeleteJob(child.name, child.uid),), "Kueue would resume a suspended Job"
    world.settle()
    assert world.children == {}
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    attempts = [entry["stage"] for entry in world.job.status.get("attempts", [])]
    assert stage.value not in attempts, "nothing has run, so nothing is recorded"
    suspend(world, value=False)
    world.settle()
    assert list(world.children) == [f"demo-{stage.slug}-1"]
    assert world.condition("Suspended") == ("True", "QuotaPending")


def test_a_training_that_the_user_suspends_saves_a_checkpoint_and_queues_again() -> None:
    world = queued(Stage.TRAIN)
    world.lingers = True
    world.run_pod(admit(world))
    world.settle()
    suspend(world)
    decision = world.step()
    assert not any(isinstance(action, SuspendJob) for action in decision.actions)
    (pod,) = world.pods.values()
    assert pod.deleting, "the trainer has its time to end"
    suspend(world, value=False)
    world.settle()
    assert world.children == {}, "no trainer starts while another one runs"
    world.remove_deleted_pods()
    world.settle()
    entry = world.job.status["attempts"][-1]
    assert (entry["outcome"], entry["reason"], entry["node"]) == ("Interrupted", "SuspendedByUser", "node1")
    assert list(world.children) == ["demo-train-1"]
    plan = world.job.status["plan"]["training"]
    world.inventory = make_inventory()
    world.settle()
    assert world.job.status["plan"]["training"] == plan, "the checkpoint belongs to this plan"


def test_a_training_that_succeeds_while_the_user_suspends_is_kept() -> None:
    world = queued(Stage.TRAIN)
    world.run_pod(admit(world))
    world.settle()
    suspend(world)
    assert decide(world.observe(), world.settings, world.now) is Need.FRESH_CHILDREN
    world.succeed(Stage.TRAIN)
    found = decide(world.observe(fresh=True), world.settings, world.now)
    assert isinstance(found, Decision)
    assert found.status is not None
    assert found.status["attempts"][-1]["outcome"] == "Succeeded"


def test_a_stage_leaves_its_queue_when_no_gpu_suits_the_job() -> None:
    world = preparing(LARGE, spec=make_spec(**QUEUES))
    world.children = {name: replace(child, suspended=False) for name, child in world.children.items()}
    world.settle()
    assert world.children == {}
    assert stalled(world)[3] == "DoesNotFit"
    assert world.job.status["attempts"][-1]["reason"] == "DoesNotFit"
    assert not any(name.startswith("demo-prepare-2") for name in world.created)


def test_a_suspension_by_the_user_delays_no_later_attempt() -> None:
    world = queued(Stage.TRAIN)
    for _ in range(5):
        world.run_pod(admit(world))
        world.settle()
        suspend(world)
        world.settle()
        suspend(world, value=False)
        world.settle()
    name = admit(world)
    world.end_pod(name, "", 143, disrupted=True)
    world.children[name] = replace(world.children[name], finished=True, failure="PodFailure")
    world.settle()
    assert len(world.children) == 1, "the first disruption is followed by an attempt at once"


def test_a_job_without_a_queue_is_only_suspended() -> None:
    world = started(Stage.TRAIN)
    suspend(world)
    world.settle()
    assert world.children["demo-train-0"].held


def test_a_kept_job_of_an_earlier_attempt_never_runs_again() -> None:
    keep = {"keepChildrenSeconds": {"success": 3600, "failure": 3600}}
    world = queued(Stage.TRAIN, lifecycle=keep)
    for name in [name for name in world.children if "prepare" in name]:
        del world.children[name]
    world.run_pod(admit(world))
    world.settle()
    world.pods.clear()
    world.children = {name: replace(child, suspended=True) for name, child in world.children.items()}
    suspend(world)
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "SuspendedByUser"
    assert world.children == {}
