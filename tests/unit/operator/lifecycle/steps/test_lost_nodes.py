from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import DeleteJob, DeletePod, Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.lifecycle.steps.lost_nodes import LOOK_AGAIN

from tests.support.operator import SETTINGS, make_inventory, make_node, make_spec
from tests.support.world import World, started


def hanging(stage: Stage = Stage.TRAIN, **lifecycle: object) -> World:
    """A world whose running pod is being deleted, and whose node does not confirm its end."""
    world = started(stage, spec=make_spec(lifecycle={"retries": 0, **lifecycle}))
    world.run_pod(f"demo-{stage.slug}-0")
    world.settle()
    (uid,) = world.pods
    world.pods[uid] = replace(world.pods[uid], deleting=True, deletion_time=world.now)
    return world


def message(world: World) -> str:
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    return str(entry["message"])


def test_a_node_that_does_not_answer_is_named_and_nothing_is_removed_by_force() -> None:
    world = hanging()
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")
    assert world.decide().requeue_time == world.now + timedelta(seconds=30)
    world.wait(30)
    world.settle()
    assert world.condition("Reconciling") == ("True", "NodeLost")
    assert "node1" in message(world)
    assert "node.kubernetes.io/out-of-service" in message(world)
    status = world.job.status
    for _ in range(100):
        world.wait(60)
        decision = world.step()
        assert decision.actions == ()
        assert decision.requeue_time == world.now + LOOK_AGAIN
    assert world.job.status == status
    assert list(world.children) == ["demo-train-0"]


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_the_stage_starts_elsewhere_after_its_node_is_gone(stage: Stage) -> None:
    world = hanging(stage)
    (pod,) = world.pods.values()
    world.lost_nodes = {"node1"}
    assert decide(world.observe(), SETTINGS, world.now) is Need.FRESH_CHILDREN
    decision = world.step()
    forced = [action for action in decision.actions if isinstance(action, DeletePod)]
    assert forced == [DeletePod(pod.name, pod.uid, 0)]
    assert any(isinstance(action, DeleteJob) for action in decision.actions)
    world.settle()
    assert list(world.children) == [f"demo-{stage.slug}-1"]
    last = world.job.status["attempts"][-1]
    assert (last["outcome"], last["reason"], last["node"]) == ("Interrupted", "Disrupted", "node1")
    assert "does not exist any more" in last["message"]


def test_a_node_that_is_out_of_service_is_as_good_as_gone() -> None:
    world = hanging()
    taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
    world.inventory = make_inventory(make_node(), make_node("node1", taints=(taint,)))
    world.settle()
    assert list(world.children) == ["demo-train-1"]
    assert "out of service" in world.job.status["attempts"][-1]["message"]


def test_the_next_attempt_waits_until_the_old_pod_is_gone() -> None:
    world = hanging()
    world.lost_nodes = {"node1"}
    world.step(lose_actions=True)
    decision = world.decide()
    assert not any(type(action).__name__ == "CreateJob" for action in decision.actions)
    assert any(isinstance(action, DeletePod) for action in decision.actions), "it is tried again"
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_the_job_of_a_lost_node_is_not_kept_because_its_pod_would_be_replaced() -> None:
    world = hanging(keepChildrenSeconds={"failure": 3600})
    world.lost_nodes = {"node1"}
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_suspended_job_is_freed_from_its_lost_pod_without_an_attempt() -> None:
    world = hanging()
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.lost_nodes = {"node1"}
    assert decide(world.observe(), SETTINGS, world.now) is Need.FRESH_CHILDREN, "never by a watch alone"
    world.settle()
    assert world.pods == {}
    assert list(world.children) == ["demo-train-0"]
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]


def test_a_pod_that_replaces_a_lost_one_goes_on() -> None:
    world = hanging()
    world.run_pod("demo-train-0", node="gpu1")
    world.lost_nodes = {"node1"}
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert [pod.node for pod in world.pods.values()] == ["gpu1"]


def test_the_pods_of_a_job_that_has_ended_are_removed_from_lost_nodes() -> None:
    world = hanging(deadlineSeconds=60)
    world.lingers = True
    world.wait(60)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert len(world.pods) == 1
    world.lost_nodes = {"node1"}
    world.settle()
    assert world.pods == {}


def test_a_start_that_waits_for_such_a_pod_names_its_node() -> None:
    world = hanging(retries=1)
    world.lingers = True
    world.delete_child("demo-train-0")
    world.settle()
    world.wait(40)
    world.settle()
    assert world.children == {}
    assert world.condition("Reconciling") == ("True", "NodeLost")


def test_a_foreign_pod_with_the_label_is_not_removed_by_force() -> None:
    world = hanging()
    (uid,) = world.pods
    world.pods[uid] = replace(world.pods[uid], owner_uid="another Job", job_uid="")
    world.lost_nodes = {"node1"}
    decision = world.step()
    assert not any(isinstance(action, DeletePod) for action in decision.actions)
