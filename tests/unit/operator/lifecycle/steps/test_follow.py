from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import SuspendJob

from tests.support.operator import NOW, make_failure, make_progress, make_spec
from tests.support.world import started


def test_an_unschedulable_pod_shows_the_schedulers_message_and_is_not_stalled() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0", running=False, unschedulable="0/1 nodes are available: 1 Insufficient gpu.")
    world.settle()
    assert world.condition("Reconciling") == ("True", "Unschedulable")
    assert world.condition("Stalled") == ("False", "Progressing")
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Succeeded")
    assert "Insufficient gpu" in entry["message"]


@pytest.mark.parametrize(
    "reason", ["ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError", "InvalidImageName"]
)
def test_a_pod_that_cannot_start_shows_the_kubelets_message(reason: str) -> None:
    world = started()
    world.run_pod("demo-prepare-0", running=False, waiting=(reason, 'secret "x" not found'))
    world.settle()
    assert world.condition("Reconciling") == ("True", "PodStuck")
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert 'secret "x" not found' in entry["message"]


def test_a_job_that_a_queue_suspends_waits_while_its_deadline_stands_still() -> None:
    world = started(Stage.TRAIN, spec=make_spec(lifecycle={"deadlineSeconds": 100}))
    world.run_pod("demo-train-0")
    world.settle()
    child = world.children["demo-train-0"]
    world.children["demo-train-0"] = replace(child, suspended=True)
    world.pods.clear()
    decision = world.step()
    assert not any(isinstance(action, SuspendJob) for action in decision.actions)
    assert world.condition("Reconciling") == ("True", "JobSuspended")
    assert world.condition("Suspended")[0] == "False"
    world.wait(1000)
    world.settle()
    assert world.children["demo-train-0"].suspended
    assert world.decide().requeue_time is None, "only the queue can change it"
    world.children["demo-train-0"] = child
    world.run_pod("demo-train-0")
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")
    assert world.job.status["stage"]["attempt"] == 0
    assert world.job.status["waiting"] == {"totalSeconds": 1000}


def test_a_job_in_a_queue_is_suspended_for_quota_and_its_deadline_stands_still() -> None:
    queues = {"queueName": "gpus", "cpuQueueName": "cpus"}
    world = started(spec=make_spec(**queues, lifecycle={"deadlineSeconds": 100}))
    child = world.children["demo-prepare-0"]
    assert (child.suspended, child.held) == (True, False)
    conditions = {
        kind: world.condition(kind) for kind in ("Succeeded", "Reconciling", "Stalled", "Suspended")
    }
    assert conditions == {
        "Succeeded": ("Unknown", "QuotaPending"),
        "Reconciling": ("True", "QuotaPending"),
        "Stalled": ("False", "Progressing"),
        "Suspended": ("True", "QuotaPending"),
    }
    assert world.job.status["phase"] == "Suspended"
    world.wait(1000)
    decision = world.step()
    assert decision.actions == ()
    assert decision.requeue_time is None, "only the queue can change it"
    world.children["demo-prepare-0"] = replace(child, suspended=False, resumed=world.now)
    world.settle()
    assert world.condition("Reconciling") == ("True", "Pending"), "its pod is not late"
    assert world.condition("Suspended") == ("False", "Running")
    assert world.decide().requeue_time == world.now + timedelta(seconds=30)
    world.wait(10)
    assert world.decide().requeue_time == world.now + timedelta(seconds=20)
    world.run_pod("demo-prepare-0")
    world.settle()
    assert world.condition("Reconciling") == ("True", "Preparing")
    assert world.job.status["waiting"] == {"totalSeconds": 1000}


def test_a_preempted_training_goes_on_as_the_same_attempt() -> None:
    world = started(Stage.TRAIN, spec=make_spec(queueName="gpus"))
    child = replace(world.children["demo-train-0"], suspended=False)
    world.children["demo-train-0"] = child
    world.run_pod("demo-train-0")
    world.settle()
    world.children["demo-train-0"] = replace(child, suspended=True)
    world.end_pod(
        "demo-train-0", make_failure(Stage.TRAIN, "Interrupted", 0, "Interrupted"), 75, deleting=True
    )
    for _ in range(2):
        world.settle()
        assert world.condition("Suspended") == ("True", "QuotaPending")
        message = find_condition(world.job.status, Condition.SUSPENDED)["message"]
        assert message.startswith("Kueue has stopped Job demo-train-0; Train goes on from its saved state")
        world.pods.clear()
    world.children["demo-train-0"] = child
    world.run_pod("demo-train-0", node="node2")
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]
    assert world.job.status["stage"]["node"] == "node2"


def test_a_pod_that_a_queue_stopped_on_a_silent_node_is_named() -> None:
    world = started(Stage.TRAIN, spec=make_spec(queueName="gpus"))
    world.run_pod("demo-train-0", deleting=True, deletion_time=world.now)
    world.settle()
    assert world.condition("Suspended") == ("True", "QuotaPending")
    world.wait(60)
    world.settle()
    assert world.condition("Reconciling") == ("True", "NodeLost")


def test_the_operator_ends_only_its_own_suspension() -> None:
    world = started(Stage.TRAIN)
    child = world.children["demo-train-0"]
    for held in (True, False):
        world.children["demo-train-0"] = replace(child, suspended=True, held=held)
        found = [action for action in world.decide().actions if isinstance(action, SuspendJob)]
        assert [(each.suspend, each.resource_version) for each in found] == (
            [(False, child.resource_version)] if held else []
        )


def test_a_mark_of_a_suspension_that_somebody_else_ended_is_taken_off() -> None:
    """Otherwise the next suspension by somebody else would count as the operator's."""
    world = started(Stage.TRAIN)
    world.children["demo-train-0"] = replace(world.children["demo-train-0"], held=True)
    world.settle()
    assert not world.children["demo-train-0"].held


def test_a_job_without_a_pod_for_thirty_seconds_shows_child_refused() -> None:
    world = started()
    world.wait(20)
    assert world.decide().requeue_time == NOW + timedelta(seconds=30)
    world.wait(10)
    world.settle()
    assert world.condition("Reconciling") == ("True", "ChildRefused")


def test_the_reason_of_a_wait_for_the_destination_stays_until_merge_has_begun() -> None:
    """Otherwise each attempt at a full volume would write two Events."""
    world = started(Stage.MERGE)
    world.fail(Stage.MERGE, "DestinationUnwritable")
    world.settle()
    world.wait(10)
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForDestination")
    world.run_pod("demo-merge-1")
    for progress in (None, make_progress(Stage.MERGE, 1, activity="Starting")):
        world.progress = progress
        world.settle()
        assert world.condition("Reconciling") == ("True", "WaitingForDestination")
    world.progress = make_progress(Stage.MERGE, 1, activity="Merging")
    world.settle()
    assert world.condition("Reconciling") == ("True", "Merging")


def test_a_cause_from_events_is_written_once_whatever_its_numbers_do() -> None:
    world = started(Stage.TRAIN)
    child = world.children["demo-train-0"]
    text = (
        'FailedCreate: pods "demo-train-0-{}" is forbidden: exceeded quota: q, used: cpu={}, limited: cpu=8'
    )
    world.warnings = {child.uid: text.format("aaaaa", 8)}
    world.settle()
    assert world.condition("Reconciling") == ("True", "ChildRefused")
    before = world.job.status
    assert "exceeded quota: q" in str(before)
    for number in range(3):
        world.wait(31)
        world.warnings = {child.uid: text.format(f"bbbb{number}", 9 + number)}
        world.settle()
        assert world.job.status == before
    world.warnings = {child.uid: "FailedCreate: violates PodSecurity"}
    world.settle()
    assert "violates PodSecurity" in str(world.job.status)


def test_the_counts_of_the_scheduler_are_written_once() -> None:
    world = started(Stage.TRAIN)
    pod = world.run_pod(
        "demo-train-0", running=False, unschedulable="0/1 nodes are available: 1 Insufficient gpu."
    )
    world.settle()
    before = world.job.status
    world.pods[pod.uid] = replace(pod, unschedulable="0/7 nodes are available: 7 Insufficient gpu.")
    world.settle()
    assert world.job.status == before
