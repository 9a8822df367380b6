from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateClaim, CreateJob, Decision, DeleteJob, Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.observation import Rejection

from tests.support.operator import make_job, make_spec
from tests.support.world import World, started


def test_a_first_attempt_looks_for_the_trainer_of_a_job_that_has_lost_its_status() -> None:
    """Its pod may have lost its label, too, and only a fresh read finds it."""
    world = World()
    new, fresh = world.observe(), world.observe(fresh=True)
    assert decide(new, world.settings, world.now) is not Need.FRESH_CHILDREN
    assert decide(replace(new, had_jobs=True), world.settings, world.now) is Need.FRESH_CHILDREN
    decision = decide(replace(fresh, had_jobs=True), world.settings, world.now)
    assert isinstance(decision, Decision)
    assert any(isinstance(action, CreateJob) for action in decision.actions)


def test_a_rejected_child_is_reported_and_created_again_later() -> None:
    world = World()
    world.step(lose_actions=True)
    world.rejection = Rejection(
        "the API server rejected Job demo-prepare-0: exceeded quota", world.now + timedelta(seconds=15)
    )
    world.settle()
    assert world.created == []
    assert world.condition("Reconciling") == ("True", "ChildRefused")
    world.wait(15)
    status = world.job.status
    decision = world.decide()
    assert decision.status == status, "status must not flip with every try"
    assert any(isinstance(action, CreateJob) for action in decision.actions)


def test_a_rejection_that_may_be_tried_again_does_not_skip_the_wait_for_the_last_pod() -> None:
    world = started(Stage.TRAIN)
    world.lingers = True
    pod = world.run_pod("demo-train-0")
    world.settle()
    world.delete_child("demo-train-0")
    world.settle()
    world.rejection = Rejection("exceeded quota", world.now)
    world.wait(10)
    world.settle()
    assert world.children == {}
    assert f"waits for pod {pod.name} to end" in str(world.job.status["conditions"])
    world.remove_deleted_pods()
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_the_pod_of_a_job_that_was_deleted_without_its_pods_is_awaited() -> None:
    """`kubectl delete job --cascade=orphan` leaves the trainer running on the workspace."""
    world = started(Stage.TRAIN)
    pod = world.run_pod("demo-train-0")
    world.settle()
    del world.children["demo-train-0"]
    world.settle()
    world.wait(3600)
    world.settle()
    assert world.children == {}
    assert f"waits for pod {pod.name} to end" in str(world.job.status["conditions"])
    world.pods[pod.uid] = replace(pod, running=False, phase="Succeeded")
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_later_attempt_starts_only_after_a_fresh_read() -> None:
    world = started(Stage.TRAIN)
    world.fail(Stage.TRAIN, "InternalError", code=69)
    world.settle()
    world.wait(10)
    assert decide(world.observe(), world.settings, world.now) is Need.FRESH_CHILDREN
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_lost_status_restarts_prepare_only_after_the_running_stage_has_ended() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, status={})
    decision = world.step()
    assert [type(action) for action in decision.actions] == [DeleteJob]
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]


def test_an_existing_workspace_claim_is_neither_created_nor_deleted() -> None:
    world = World(job=make_job(spec=make_spec(workspace={"existingClaim": "shared"})))
    decision = world.step()
    assert not any(isinstance(action, CreateClaim) for action in decision.actions)
    body = world.bodies["demo-prepare-0"]
    mounts = body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert next(mount for mount in mounts if mount["mountPath"] == "/workspace")["subPath"] == world.job.uid
