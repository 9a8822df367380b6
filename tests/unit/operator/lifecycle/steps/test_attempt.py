from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.lifecycle.retry import MAXIMUM_ATTEMPT

from tests.support.operator import NOW, SETTINGS, make_failure, make_spec
from tests.support.world import World, started


def hosts(world: World) -> dict[str, int]:
    """The host memory of each stage that has started."""
    return {entry["stage"]: entry["memoryBytes"] for entry in world.job.status["plan"]["hosts"]}


def test_the_image_of_a_failed_prepare_is_known_when_its_pod_is_gone() -> None:
    world = started(Stage.PREPARE)
    world.fail(Stage.PREPARE, "InvalidDataset")
    world.settle()
    assert world.children == {}
    assert world.job.status["trainer"]["image"] == SETTINGS.trainer.image


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_permanent_failure_ends_the_job_at_once_with_the_trainers_message(stage: Stage) -> None:
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


def test_a_withheld_model_ends_the_job_in_merge_and_stays_in_the_workspace() -> None:
    world = started(Stage.MERGE, spec=make_spec(evaluation={"gate": "WithholdIfWorse"}))
    world.fail(Stage.MERGE, "WithheldByGate")
    world.settle()
    status = world.job.status
    assert world.condition("Succeeded") == ("False", "WithheldByGate")
    assert world.created.count("demo-merge-0") == 1, "no second attempt"
    assert world.claim is not None
    assert status["evaluation"]["verdict"] == "Improved"
    assert world.condition("Trained") == ("True", "StageSucceeded")
    assert not {"artifacts", "verification"} & status.keys()


def test_a_retryable_failure_is_retried_with_growing_delays_until_retries_run_out() -> None:
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


def test_an_interruption_continues_at_once_and_costs_no_retry() -> None:
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


@pytest.mark.parametrize("killed", [True, False], ids=["by the kernel", "reported by the trainer"])
def test_an_oom_kill_is_retried_once_with_half_as_much_memory_again(*, killed: bool) -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"retries": 0}))
    first = hosts(world)["Merge"]
    if killed:
        world.end_pod("demo-merge-0", "", 137, "OOMKilled")
    else:
        world.fail(Stage.MERGE, "HostOutOfMemory", code=65)
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


def test_memory_that_the_user_set_is_not_raised() -> None:
    world = started(Stage.MERGE, spec=make_spec(resources={"merge": {"memory": "1Gi"}}))
    world.end_pod("demo-merge-0", "", 137, "OOMKilled")
    world.settle()
    assert world.condition("Succeeded") == ("False", "HostOutOfMemory")
    assert "1536Mi" in world.job.status["failure"]["message"]


@pytest.mark.parametrize(
    "message",
    ["", "not json", '{"version": "1.0"}', '{"version": "2.0"}', "[" * 4000, '{"a": NaN}', "x" * 5000],
)
def test_an_end_without_a_readable_result_is_a_lost_stage_and_is_retried(message: str) -> None:
    world = started()
    world.end_pod("demo-prepare-0", message, 1)
    world.settle()
    assert world.condition("Reconciling") == ("True", "BackingOff")
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


def test_pods_killed_by_hand_cost_no_retry_however_often() -> None:
    world = started(spec=make_spec(lifecycle={"retries": 0}))
    for attempt in range(10):
        name = f"demo-prepare-{attempt}"
        world.end_pod(name, "", 137, "Error", deleting=True)
        world.settle()
        assert list(world.children) == [name], "the Job controller decides first"
        world.children[name] = replace(world.children[name], finished=True, failure="BackoffLimitExceeded")
        world.wait(10)
        world.settle()
    world.succeed(Stage.PREPARE, 10)
    world.settle()
    assert world.job.status["stage"]["name"] == "Train"
    reasons = [entry.get("reason") for entry in world.job.status["attempts"]]
    assert reasons == ["Disrupted"] * 10 + ["StageSucceeded"]


@pytest.mark.parametrize(
    "reason",
    [
        "DestinationNotFound",
        "DestinationAccessDenied",
        "DestinationUnavailable",
        "DestinationAddressForbidden",
    ],
)
def test_merge_waits_for_a_remote_destination_whatever_its_trouble(reason: str) -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"retries": 0}))
    for attempt in range(2):
        world.fail(Stage.MERGE, reason, attempt, code=69)
        world.settle()
        assert world.condition("Reconciling") == ("True", "WaitingForDestination")
        world.wait(600)
        world.settle()
    world.succeed(Stage.MERGE, 2)
    world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")
    assert [name for name in world.created if "merge" not in name] == ["demo-prepare-0", "demo-train-0"]


def test_a_destination_that_is_away_before_train_is_tried_again() -> None:
    world = started()
    world.fail(Stage.PREPARE, "DestinationUnavailable", code=69)
    world.settle()
    assert world.condition("Reconciling") == ("True", "BackingOff")
    world = started()
    world.fail(Stage.PREPARE, "DestinationAccessDenied")
    world.settle()
    assert world.condition("Succeeded") == ("False", "DestinationAccessDenied")


def test_merge_is_tried_until_its_destination_works_and_nothing_is_trained_again() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"retries": 0}))
    for attempt, delay in enumerate((10, 20, 40, 80, 160, 320, 600, 600)):
        world.fail(Stage.MERGE, "DestinationUnwritable", attempt)
        world.settle()
        assert world.condition("Reconciling") == ("True", "WaitingForDestination")
        assert world.condition("Succeeded") == ("Unknown", "WaitingForDestination")
        assert world.condition("Stalled")[0] == "False"
        assert world.condition("Trained") == ("True", "StageSucceeded")
        assert world.children == {}
        assert world.decide().requeue_time == world.now + timedelta(seconds=delay)
        world.wait(delay)
        world.settle()
        assert list(world.children) == [f"demo-merge-{attempt + 1}"]
    world.succeed(Stage.MERGE, 8)
    world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")
    assert [name for name in world.created if "merge" not in name] == ["demo-prepare-0", "demo-train-0"]
    assert "failure" not in world.job.status


def test_a_wait_for_the_destination_says_its_cause_and_what_helps() -> None:
    world = started(Stage.MERGE)
    world.fail(Stage.MERGE, "DestinationUnwritable")
    world.settle()
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    for part in ("must not be DestinationUnwritable", "2026-11-24T09:00:10Z", "spec.suspend"):
        assert part in entry["message"]


def test_a_destination_that_fails_in_prepare_ends_the_job() -> None:
    world = started()
    world.fail(Stage.PREPARE, "DestinationUnwritable")
    world.settle()
    assert world.condition("Succeeded") == ("False", "DestinationUnwritable")


def test_waits_for_the_destination_use_no_retry_of_other_failures() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"retries": 1}))
    for attempt, reason in enumerate(("DestinationUnwritable", "DestinationUnwritable", "InternalError")):
        world.fail(Stage.MERGE, reason, attempt, code=69)
        world.settle()
        assert world.condition("Succeeded")[0] == "Unknown"
        world.wait(600)
        world.settle()
    assert list(world.children) == ["demo-merge-3"]
    world.fail(Stage.MERGE, "InternalError", 3, code=69)
    world.settle()
    assert world.condition("Succeeded") == ("False", "InternalError")


def test_a_wait_for_the_destination_outlives_the_last_attempt_number() -> None:
    world = started(Stage.MERGE)
    stage = {"name": "Merge", "attempt": MAXIMUM_ATTEMPT, "jobName": f"demo-merge-{MAXIMUM_ATTEMPT}"}
    world.children.clear()
    world.pods.clear()
    world.job = replace(world.job, status={**world.job.status, "stage": stage})
    world.settle()
    world.fail(Stage.MERGE, "DestinationUnwritable", MAXIMUM_ATTEMPT)
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForDestination")
    world.wait(10)
    world.settle()
    assert list(world.children) == ["demo-merge-0"]
    world.fail(Stage.MERGE, "DestinationUnwritable", 0)
    world.settle()
    assert [entry["attempt"] for entry in world.job.status["attempts"]][-2:] == [MAXIMUM_ATTEMPT, 0]
    world.wait(20)
    world.settle()
    assert list(world.children) == ["demo-merge-1"]
