from __future__ import annotations

import json
from dataclasses import replace

import pytest
from finetune_operator.api.reasons import ReasonClass
from finetune_operator.api.stages import Stage
from finetune_operator.observed.outcomes import AttemptOutcome, attempt_outcome

from tests.support.operator import UID, make_failure, make_result
from tests.support.world import World, started


def ending(message: str, code: int, reason: str, /, **changes: object) -> AttemptOutcome:
    """The outcome of an attempt of PREPARE whose container and pod ended like this."""
    world = World()
    world.settle()
    world.end_pod("demo-prepare-0", message, code, reason)
    (pod,) = world.pods.values()
    child = replace(world.children["demo-prepare-0"], finished=True)
    found = attempt_outcome(uid=UID, child=child, pods=(replace(pod, **changes),), suspending=False)  # type: ignore[arg-type]  # any field of Pod
    assert found is not None
    return found


def test_a_result_of_another_job_is_ignored() -> None:
    world = started()
    world.succeed(Stage.PREPARE, uid="another")
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"
    assert world.job.status["stage"]["name"] == "Prepare"


def test_a_success_with_a_failing_exit_code_is_ignored() -> None:
    world = started()
    world.succeed(Stage.PREPARE)
    pod = next(iter(world.pods.values()))
    assert pod.end is not None
    world.pods[pod.uid] = replace(pod, end=replace(pod.end, exit_code=139))
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"


def test_a_trainer_cannot_use_the_operators_reasons() -> None:
    world = started()
    world.end_pod("demo-prepare-0", make_failure(Stage.PREPARE, "Completed"), 65)
    world.settle()
    assert world.job.status["attempts"][-1]["reason"] == "StageLost"


def test_the_reason_of_a_pod_that_was_deleted_afterwards_counts() -> None:
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


def test_an_injected_container_that_keeps_running_does_not_hold_the_stage() -> None:
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


def test_a_container_that_the_kernel_killed_ran_out_of_memory() -> None:
    found = ending("", 137, "OOMKilled")
    assert (found.reason, found.kind) == ("HostOutOfMemory", ReasonClass.PERMANENT)


def test_a_trainer_that_got_no_more_memory_reports_it_itself() -> None:
    result = json.dumps(make_failure(Stage.PREPARE, "HostOutOfMemory"))
    found = ending(result, 65, "Error")
    assert (found.reason, found.kind) == ("HostOutOfMemory", ReasonClass.PERMANENT)
    assert found.result is not None
    stolen = ending(json.dumps(make_failure(Stage.PREPARE, "DeadlineExceeded")), 65, "Error")
    assert stolen.reason == "StageLost", "no trainer may report the operator's other reasons"


def test_a_trainer_whose_process_was_killed_ran_out_of_memory() -> None:
    """The kernel may kill one of PREPARE's processes. The trainer only sees that it has ended."""
    result = json.dumps(make_failure(Stage.PREPARE, "InternalError"))
    found = ending(result, 69, "OOMKilled")
    assert found.reason == "HostOutOfMemory"
    assert found.result is not None
    assert found.result.log_tail == ("last",)
    named = ending(json.dumps(make_failure(Stage.PREPARE, "InvalidDataset")), 65, "OOMKilled")
    assert named.reason == "InvalidDataset", "the trainer's own reason is the cause"
    assert ending(json.dumps(make_result(Stage.PREPARE)), 0, "OOMKilled").outcome == "Succeeded"


@pytest.mark.parametrize(
    "message",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        'Usage of EmptyDir volume "tmp" exceeds the limit "2Gi". ',
        'Container trainer exceeded its local ephemeral storage limit "2Gi". ',
    ],
)
def test_a_pod_that_exceeded_its_own_disk_is_reported(message: str) -> None:
    found = ending("", 137, "Error", phase="Failed", reason="Evicted", message=message)
    assert (found.reason, found.kind) == ("ScratchFull", ReasonClass.PERMANENT)
    assert "2Gi" in found.message
    assert "workspace" in found.message


def test_a_node_that_lacks_disk_disrupts_the_pod_instead() -> None:
    message = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1Mi."
    found = ending("", 137, "Error", phase="Failed", reason="Evicted", message=message, disrupted=True)
    assert (found.outcome, found.kind) == ("Interrupted", ReasonClass.INTERRUPTED)
