from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import (
    CreateClaim,
    CreateJob,
    DeleteClaim,
    DeleteJob,
    DeletePod,
    Need,
    SuspendJob,
)
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.observation import Rejection

from tests.support.operator import (
    MERGE,
    NOW,
    SETTINGS,
    TRAIN,
    World,
    make_failure,
    make_job,
    make_progress,
    make_spec,
)


def started(stage: Stage = Stage.PREPARE, **changes: Any) -> World:
    """A world whose job has just had this stage's Job created."""
    world = World(job=make_job(**changes))
    world.settle()
    for earlier in Stage:
        if earlier is stage:
            return world
        world.succeed(earlier)
        world.settle()
    raise AssertionError(stage)


def test_a_job_runs_its_three_stages_once_each_and_leaves_nothing() -> None:
    world = World()
    for stage in Stage:
        world.settle()
        assert list(world.children) == [f"demo-{stage.slug}-0"]
        world.run_pod(f"demo-{stage.slug}-0")
        world.settle()
        assert world.condition("Reconciling") == ("True", stage.active_reason)
        world.wait(5)
        world.succeed(stage)
    world.settle()
    assert world.created == ["demo-prepare-0", "demo-train-0", "demo-merge-0"]
    assert world.children == {}
    assert world.claim is None
    status = world.job.status
    assert status["phase"] == "Succeeded"
    assert status["evaluation"]["verdict"] == "Improved"
    assert status["evaluation"]["interval"] == ["-1.25", "-0.75"]
    assert status["dataset"]["rejected"] == [{"reason": "EmptyAnswer", "rows": 1}]
    assert status["artifacts"] == MERGE["artifacts"]
    assert status["verification"]["klDivergence"] == "0.001"
    assert status["progress"]["percent"] == "100%"
    assert [(entry["stage"], entry["outcome"]) for entry in status["attempts"]] == [
        (stage.value, "Succeeded") for stage in Stage
    ]
    assert world.condition("Succeeded") == ("True", "Completed")
    assert world.condition("Reconciling") == ("False", "Finished")
    assert world.condition("Stalled") == ("False", "Finished")
    for kind in ("DatasetReady", "ModelReady", "Trained", "Published"):
        assert world.condition(kind) == ("True", "StageSucceeded")


def test_first_visit_writes_every_condition_and_the_plan() -> None:
    world = World()
    world.step()
    assert {entry["type"]: entry["status"] for entry in world.job.status["conditions"]} == {
        "Succeeded": "Unknown",
        "Reconciling": "True",
        "Stalled": "False",
        "Suspended": "False",
        "DatasetReady": "Unknown",
        "ModelReady": "Unknown",
        "Trained": "Unknown",
        "Published": "Unknown",
    }
    assert {choice["name"] for choice in world.job.status["plan"]["choices"]} == {
        "microBatchSize",
        "gradientCheckpointing",
        "epochs",
    }
    assert world.job.status["phase"] == "Pending"
    assert world.job.status["observedGeneration"] == 1
    assert world.job.status["specHash"].startswith("sha256:")


def test_status_is_decided_before_the_spent_job_is_deleted_and_the_next_created() -> None:
    world = started()
    spent = world.children["demo-prepare-0"]
    world.succeed(Stage.PREPARE)
    pod = next(iter(world.pods.values()))
    decision = world.decide()
    assert decision.status is not None
    assert decision.status["stage"]["name"] == "Train"
    assert decision.actions[:2] == (DeleteJob("demo-prepare-0", spent.uid), DeletePod(pod.name, pod.uid))
    assert isinstance(decision.actions[2], CreateJob)


def test_a_pod_in_which_something_still_runs_is_given_its_grace() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    pod = next(iter(world.pods.values()))
    world.succeed(Stage.PREPARE)
    world.pods[pod.uid] = replace(world.pods[pod.uid], idle=False)
    assert not any(isinstance(action, DeletePod) for action in world.decide().actions)


def test_deciding_twice_gives_the_same() -> None:
    world = started()
    world.succeed(Stage.PREPARE)
    assert world.decide() == world.decide()


def test_an_unchanged_observation_changes_no_status() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.settle()
    world.wait(3600)
    assert world.decide().status == world.job.status


@pytest.mark.parametrize("stage", list(Stage))
def test_a_permanent_failure_ends_the_job_at_once_with_the_trainers_words(stage: Stage) -> None:
    world = started(stage)
    world.fail(stage, "InvalidDataset")
    world.settle()
    assert world.condition("Succeeded") == ("False", "InvalidDataset")
    assert world.condition("Stalled") == ("True", "InvalidDataset")
    assert world.condition("Reconciling") == ("False", "Finished")
    assert world.job.status["failure"] == {
        "stage": stage.value,
        "reason": "InvalidDataset",
        "message": "must not be InvalidDataset",
        "logTail": ["last"],
    }
    assert world.job.status["phase"] == "Failed"
    assert world.children == {}
    assert world.claim is not None, "keepWorkspace OnFailure keeps it"
    assert world.condition("Published") == ("False", "StageFailed")


def test_a_retryable_failure_is_tried_again_with_growing_delays_until_retries_are_used_up() -> None:
    world = started(Stage.TRAIN)
    for attempt, delay in ((0, 10), (1, 20)):
        world.fail(Stage.TRAIN, "InternalError", attempt, code=69)
        world.settle()
        assert world.condition("Reconciling") == ("True", "BackingOff")
        assert world.children == {}
        decision = world.decide()
        assert decision.requeue_time == world.now + timedelta(seconds=delay)
        world.wait(delay)
        world.settle()
        assert list(world.children) == [f"demo-train-{attempt + 1}"]
    world.fail(Stage.TRAIN, "InternalError", 2, code=69)
    world.settle()
    assert world.condition("Succeeded") == ("False", "InternalError")
    assert world.created.count("demo-prepare-0") == 1


def test_retries_zero_gives_up_after_the_first_failure() -> None:
    world = started(spec=make_spec(lifecycle={"retries": 0}))
    world.fail(Stage.PREPARE, "InternalError", code=69)
    world.settle()
    assert world.condition("Succeeded") == ("False", "InternalError")


def test_an_interruption_goes_on_at_once_and_uses_up_no_retry() -> None:
    world = started(Stage.TRAIN, spec=make_spec(lifecycle={"retries": 0}))
    world.end_pod("demo-train-0", make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted"), 75)
    world.settle()
    assert list(world.children) == ["demo-train-1"]
    assert world.job.status["attempts"][-1]["outcome"] == "Interrupted"


def test_repeated_interruptions_back_off() -> None:
    world = started(Stage.TRAIN)
    for attempt in range(2):
        interrupted = make_failure(Stage.TRAIN, "Interrupted", attempt, outcome="Interrupted")
        world.end_pod(f"demo-train-{attempt}", interrupted, 75)
        world.settle()
    assert world.condition("Reconciling") == ("True", "BackingOff")


def test_an_oom_kill_is_tried_again_once_with_half_as_much_memory_again() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"retries": 0}))
    first = hosts(world)["Merge"]
    world.end_pod("demo-merge-0", "", 137, "OOMKilled")
    world.settle()
    assert world.condition("Reconciling") == ("True", "BackingOff")
    world.wait(10)
    world.settle()
    assert list(world.children) == ["demo-merge-1"]
    assert hosts(world)["Merge"] >= first * 3 // 2
    world.end_pod("demo-merge-1", "", 137, "OOMKilled")
    world.settle()
    assert world.condition("Succeeded") == ("False", "HostOutOfMemory")
    assert "resources.merge.memory" in world.job.status["failure"]["message"]


def test_memory_that_the_user_gave_is_not_raised() -> None:
    world = started(Stage.MERGE, spec=make_spec(resources={"merge": {"memory": "1Gi"}}))
    world.end_pod("demo-merge-0", "", 137, "OOMKilled")
    world.settle()
    assert world.condition("Succeeded") == ("False", "HostOutOfMemory")
    assert "1536Mi" in world.job.status["failure"]["message"]


def hosts(world: World) -> dict[str, int]:
    """Memory of the stages that have been started."""
    return {entry["stage"]: entry["memoryBytes"] for entry in world.job.status["plan"]["hosts"]}


@pytest.mark.parametrize(
    "message",
    ["", "not json", '{"version": "1.0"}', '{"version": "2.0"}', "[" * 4000, '{"a": NaN}', "x" * 5000],
)
def test_an_end_without_a_readable_result_is_a_lost_stage_and_tried_again(message: str) -> None:
    world = started()
    world.end_pod("demo-prepare-0", message, 1)
    world.settle()
    assert world.condition("Reconciling") == ("True", "BackingOff")
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"


def test_a_result_of_another_job_is_not_believed() -> None:
    world = started()
    world.succeed(Stage.PREPARE, uid="another")
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"
    assert world.job.status["stage"]["name"] == "Prepare"


def test_a_success_with_a_failing_exit_code_is_not_believed() -> None:
    world = started()
    world.succeed(Stage.PREPARE)
    pod = next(iter(world.pods.values()))
    assert pod.end is not None
    world.pods[pod.uid] = replace(pod, end=replace(pod.end, exit_code=139))
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"


def test_a_trainer_cannot_speak_in_the_operators_reasons() -> None:
    world = started()
    world.end_pod("demo-prepare-0", make_failure(Stage.PREPARE, "Completed"), 65)
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"


def test_a_job_deleted_by_hand_is_a_lost_stage_only_after_a_fresh_read() -> None:
    world = started(Stage.TRAIN)
    world.settle()
    world.children.clear()
    assert decide(world.observe(), SETTINGS, NOW) is Need.FRESH_CHILDREN
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"
    assert world.condition("Reconciling") == ("True", "BackingOff")
    world.wait(10)
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_failed_job_without_pods_was_disrupted_but_only_after_a_fresh_read() -> None:
    """A pod that ended by itself would still be there."""
    world = started(spec=make_spec(lifecycle={"retries": 0}))
    child = world.children["demo-prepare-0"]
    world.children["demo-prepare-0"] = replace(child, finished=True, failure="BackoffLimitExceeded")
    assert decide(world.observe(), SETTINGS, NOW) is Need.FRESH_CHILDREN
    world.settle()
    last = world.job.status["attempts"][-1]
    assert (last["outcome"], last["reason"]) == ("Interrupted", "Disrupted")
    assert "was deleted" in last["message"]
    assert list(world.children) == ["demo-prepare-1"]


def test_pods_killed_by_hand_use_up_no_retry_however_often() -> None:
    world = started(spec=make_spec(lifecycle={"retries": 0}))
    for attempt in range(10):
        name = f"demo-prepare-{attempt}"
        world.end_pod(name, "", 137, "Error", deleting=True)
        world.settle()
        assert list(world.children) == [name], "the Job controller's verdict is awaited"
        world.children[name] = replace(world.children[name], finished=True, failure="BackoffLimitExceeded")
        world.wait(10)
        world.settle()
    world.succeed(Stage.PREPARE, 10)
    world.settle()
    assert world.job.status["stage"]["name"] == "Train"
    reasons = [entry.get("reason") for entry in world.job.status["attempts"]]
    assert reasons == ["Disrupted"] * 10 + ["StageSucceeded"]


def test_a_pod_that_told_its_reason_before_it_was_deleted_is_believed() -> None:
    world = started()
    world.fail(Stage.PREPARE, "InvalidDataset")
    pod = next(iter(world.pods.values()))
    world.pods[pod.uid] = replace(pod, deleting=True)
    world.children["demo-prepare-0"] = replace(world.children["demo-prepare-0"], finished=True)
    world.settle()
    assert world.condition("Succeeded") == ("False", "InvalidDataset")


def test_a_disrupted_pod_is_left_to_the_job_controller() -> None:
    world = started(Stage.TRAIN)
    world.end_pod("demo-train-0", "", 137, "Error", disrupted=True)
    world.settle()
    assert "attempts" in world.job.status
    assert world.job.status["stage"]["attempt"] == 0
    assert list(world.children) == ["demo-train-0"]
    world.run_pod("demo-train-0")
    world.succeed(Stage.TRAIN)
    world.settle()
    assert world.job.status["stage"]["name"] == "Merge"


def test_a_disrupted_pod_that_finished_in_time_counts() -> None:
    world = started()
    world.run_pod("demo-prepare-0", disrupted=True)
    world.succeed(Stage.PREPARE)
    world.settle()
    assert world.job.status["stage"]["name"] == "Train"


def test_an_injected_container_that_goes_on_does_not_hold_the_stage() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.succeed(Stage.PREPARE)
    assert next(iter(world.pods.values())).phase == "Running"
    world.settle()
    assert "demo-prepare-0" not in world.children


def test_a_pod_that_failed_before_its_container_ran_is_a_lost_stage() -> None:
    world = started()
    world.run_pod(
        "demo-prepare-0", phase="Failed", running=False, reason="UnexpectedAdmissionError", message="no"
    )
    world.settle()
    assert "UnexpectedAdmissionError" in world.job.status["attempts"][-1]["message"]


def test_suspending_stops_the_stage_and_resuming_goes_on_with_the_same_attempt() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, spec=make_spec(suspend=True), generation=2)
    decision = world.step()
    assert any(isinstance(action, SuspendJob) and action.suspend for action in decision.actions)
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    assert world.job.status["phase"] == "Suspended"
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75, deleting=True)
    world.settle()
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]
    world.pods.clear()
    world.job = replace(world.job, spec=make_spec(), generation=3)
    world.settle()
    assert not world.children["demo-train-0"].suspended
    assert world.condition("Suspended") == ("False", "Running")
    assert world.job.status["stage"]["attempt"] == 0
    assert world.job.status["observedGeneration"] == 3


def test_a_job_created_suspended_creates_nothing_until_it_is_resumed() -> None:
    world = World(job=make_job(spec=make_spec(suspend=True)))
    world.settle()
    assert world.created == []
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    assert world.created == ["demo-prepare-0"]


def test_a_stage_that_succeeds_while_being_suspended_is_kept() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.step()
    world.succeed(Stage.TRAIN)
    world.settle()
    assert world.condition("Trained") == ("True", "StageSucceeded")
    assert world.children == {}
    assert world.created[-1] == "demo-train-0"


def test_deadline_ends_the_job_and_stops_its_pod() -> None:
    world = started(spec=make_spec(lifecycle={"deadlineSeconds": 60}))
    world.run_pod("demo-prepare-0")
    world.settle()
    assert world.decide().requeue_time is not None
    world.wait(61)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert world.children == {}


def test_a_result_that_came_before_the_deadline_was_noticed_counts() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"deadlineSeconds": 60}))
    world.succeed(Stage.MERGE)
    world.wait(3600)
    world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")


def test_unschedulable_is_told_in_the_schedulers_words_and_is_not_stalled() -> None:
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
def test_a_pod_that_cannot_start_is_told_in_the_kubelets_words(reason: str) -> None:
    world = started()
    world.run_pod("demo-prepare-0", running=False, waiting=(reason, 'secret "x" not found'))
    world.settle()
    assert world.condition("Reconciling") == ("True", "PodStuck")
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert 'secret "x" not found' in entry["message"]


def test_a_job_without_a_pod_for_long_is_told() -> None:
    world = started()
    world.wait(20)
    assert world.decide().requeue_time == NOW + timedelta(seconds=30)
    world.wait(10)
    world.settle()
    assert world.condition("Reconciling") == ("True", "ChildRefused")


def test_a_refused_child_is_told_and_asked_for_again_later() -> None:
    world = World()
    world.step(lose_actions=True)
    world.rejection = Rejection(
        "Job demo-prepare-0 was refused: exceeded quota", world.now + timedelta(seconds=15)
    )
    world.settle()
    assert world.created == []
    assert world.condition("Reconciling") == ("True", "ChildRefused")
    world.wait(15)
    status = world.job.status
    decision = world.decide()
    assert decision.status == status, "status must not flip with every try"
    assert any(isinstance(action, CreateJob) for action in decision.actions)


def test_completed_stages_that_prepare_reports_are_not_run_again() -> None:
    world = started()
    world.succeed(Stage.PREPARE, completed={"train": TRAIN, "merge": MERGE})
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert world.condition("Succeeded") == ("True", "Completed")
    assert world.job.status["evaluation"]["verdict"] == "Improved"


def test_a_training_that_prepare_reports_leads_straight_to_merge() -> None:
    world = started()
    world.succeed(Stage.PREPARE, completed={"train": TRAIN})
    world.settle()
    assert world.created == ["demo-prepare-0", "demo-merge-0"]


def test_a_lost_status_starts_prepare_again_but_not_beside_a_running_stage() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, status={})
    decision = world.step()
    assert [type(action) for action in decision.actions] == [DeleteJob]
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]


def test_children_are_kept_for_the_time_asked_for() -> None:
    keep = {"keepChildrenSeconds": {"success": 100, "failure": 300}}
    world = started(spec=make_spec(lifecycle=keep))
    world.succeed(Stage.PREPARE)
    world.settle()
    assert set(world.children) == {"demo-prepare-0", "demo-train-0"}
    world.fail(Stage.TRAIN, "NonFiniteLoss")
    world.settle()
    world.wait(101)
    world.settle()
    assert set(world.children) == {"demo-train-0"}
    assert world.decide().requeue_time == NOW + timedelta(seconds=300)
    world.wait(200)
    world.settle()
    assert world.children == {}


@pytest.mark.parametrize(
    ("policy", "succeeds", "kept"),
    [
        ("Always", True, True),
        ("Always", False, True),
        ("OnFailure", True, False),
        ("OnFailure", False, True),
        ("Never", True, False),
        ("Never", False, False),
    ],
)
def test_the_workspace_is_kept_as_the_policy_says(policy: str, succeeds: bool, kept: bool) -> None:  # noqa: FBT001
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"keepWorkspace": policy}))
    if succeeds:
        world.succeed(Stage.MERGE)
    else:
        world.fail(Stage.MERGE, "DestinationUnwritable")
    world.settle()
    assert (world.claim is not None) == kept


def test_an_existing_workspace_claim_is_neither_created_nor_deleted() -> None:
    world = World(job=make_job(spec=make_spec(workspace={"existingClaim": "shared"})))
    decision = world.step()
    assert not any(isinstance(action, CreateClaim) for action in decision.actions)
    body = world.bodies["demo-prepare-0"]
    mounts = body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert next(mount for mount in mounts if mount["mountPath"] == "/workspace")["subPath"] == world.job.uid


def test_an_invalid_spec_fails_without_creating_anything() -> None:
    world = World(job=make_job(spec=make_spec(training={"microBatchSize": 3})))
    world.settle()
    assert world.created == []
    assert world.condition("Succeeded") == ("False", "InvalidSpec")
    assert "must divide" in world.job.status["failure"]["message"]


def test_a_finished_job_whose_spec_is_no_longer_readable_keeps_its_workspace() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"keepWorkspace": "Always"}))
    world.succeed(Stage.MERGE)
    world.settle()
    world.job = replace(world.job, spec={"from": "another version"})
    decision = world.decide()
    assert not any(isinstance(action, DeleteClaim) for action in decision.actions)
    assert decision.status is not None
    assert decision.status["phase"] == "Succeeded"


def test_a_job_being_deleted_is_left_alone() -> None:
    world = World(job=make_job(deleting=True))
    decision = world.decide()
    assert decision.status is None
    assert decision.actions == ()


def test_a_namesakes_children_are_left_alone() -> None:
    world = started()
    world.children = {name: replace(child, owner_uid="old") for name, child in world.children.items()}
    decision = world.decide()
    assert not any(isinstance(action, DeleteJob) for action in decision.actions)


def test_progress_of_the_current_attempt_reaches_status() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.progress = make_progress(Stage.TRAIN, step=10)
    world.settle()
    progress = world.job.status["progress"]
    assert (progress["activity"], progress["percent"], progress["loss"]) == ("Training", "25%", "1.5")


def test_progress_of_an_earlier_attempt_is_ignored() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.progress = make_progress(Stage.PREPARE)
    world.settle()
    assert world.job.status["progress"]["activity"] == "Starting"


def test_conditions_keep_their_transition_time_while_their_status_stands() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.wait(60)
    world.settle()
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert entry["reason"] == "Preparing"
    assert entry["lastTransitionTime"] == "2026-11-24T09:00:00Z"
