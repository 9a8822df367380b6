from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.movement import answered, unanswered

from tests.support.operator import make_progress, make_spec
from tests.support.world import World, started

LIMIT = 120


def running(stage: Stage = Stage.TRAIN, **lifecycle: Any) -> World:
    """A world in which this stage's trainer has answered once."""
    world = started(stage, spec=make_spec(lifecycle={"noProgressSeconds": LIMIT, **lifecycle}))
    poll(world, world.run_pod(f"demo-{stage.slug}-0").uid)
    world.settle()
    return world


def poll(world: World, uid: str) -> None:
    """Let the trainer answer with the step that it always has."""
    world.movement = answered(world.movement, uid, make_progress(world_stage(world)), world.now)


def world_stage(world: World) -> Stage:
    return Stage(world.job.status["stage"]["name"])


def pod_uid(world: World) -> str:
    (pod,) = world.pods.values()
    return pod.uid


def test_a_trainer_that_stands_still_is_stopped_and_tried_again() -> None:
    world = running()
    world.wait(LIMIT)
    poll(world, pod_uid(world))
    world.settle()
    attempt = world.job.status["attempts"][-1]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "NoProgress")
    assert "lifecycle.noProgressSeconds (120 s)" in attempt["message"]
    assert attempt["node"] == "node1"
    assert (world.children, world.pods) == ({}, {})
    assert world.condition("Reconciling") == ("True", "BackingOff")
    world.wait(600)
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_it_uses_a_retry_and_fails_the_job_without_one() -> None:
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.MERGE):
        world = running(stage, retries=0)
        world.wait(LIMIT)
        poll(world, pod_uid(world))
        world.settle()
        assert world.condition("Succeeded") == ("False", "NoProgress")


def test_the_decision_is_asked_for_at_the_limit_and_then_at_each_poll() -> None:
    world = running()
    assert world.decide().requeue_time == world.now + timedelta(seconds=LIMIT)
    world.wait(LIMIT + 50)
    decision = world.decide()
    assert decision.actions == (), "no poll has found the trainer since"
    assert decision.requeue_time == world.now + timedelta(seconds=world.settings.progress_seconds)


def test_a_trainer_that_the_network_hides_is_not_judged() -> None:
    world = running()
    world.wait(30 * LIMIT)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert world.condition("Reconciling") == ("True", "Training")


def test_a_process_that_hangs_is_stopped_although_it_answers_nothing() -> None:
    world = running()
    world.wait(LIMIT)
    world.movement = unanswered(world.movement, pod_uid(world), world.now)
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "NoProgress"


def test_a_fresh_read_comes_first_and_a_success_counts() -> None:
    world = running()
    world.wait(LIMIT)
    poll(world, pod_uid(world))
    assert decide(world.observe(), world.settings, world.now) is Need.FRESH_CHILDREN
    world.succeed(Stage.TRAIN)
    world.settle()
    assert world_stage(world) is Stage.MERGE


def test_without_a_limit_nothing_is_judged() -> None:
    world = started(Stage.TRAIN)
    poll(world, world.run_pod("demo-train-0").uid)
    world.settle()
    world.wait(10**6)
    poll(world, pod_uid(world))
    assert world.decide().actions == ()
    assert world.decide().requeue_time is None


def test_a_suspended_job_is_not_judged() -> None:
    world = running()
    world.wait(LIMIT)
    poll(world, pod_uid(world))
    world.job = replace(world.job, spec={**world.job.spec, "suspend": True}, generation=2)
    world.settle()
    assert "NoProgress" not in str(world.job.status)
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
