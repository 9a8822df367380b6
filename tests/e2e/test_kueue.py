"""The stages of a job wait for quota in the queues of a real Kueue."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs, queues

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]

QUEUES: dict[str, Any] = {"queueName": queues.GPU_QUEUE, "cpuQueueName": queues.CPU_QUEUE}
TRAINING: dict[str, Any] = {
    "maximumSteps": 400,
    "effectiveBatchSize": 2,
    "microBatchSize": 2,
    "maximumLength": 256,
    "learningRate": 0.001,
}


@pytest.fixture(scope="module")
def queued_room(operator: ProvidedCluster, workplace: Kubectl, kubectl: Kubectl) -> Iterator[Kubectl]:
    """The shared namespace with LocalQueues, while Kueue runs."""
    with queues.running_queues(kubectl, workplace, operator.trainer_image):
        yield workplace


@pytest.fixture
def room(queued_room: Kubectl) -> Iterator[Kubectl]:
    yield queued_room
    queued_room("delete", "finetunejobs,jobs", "--all", "--wait=true")
    queued_room("delete", "pods", f"--selector=!{jobs.SERVER_LABEL}", "--grace-period=1", "--wait=true")


@pytest.fixture
def occupy(room: Kubectl, operator: ProvidedCluster) -> Callable[..., str]:
    """Run a plain Job that takes the only GPU of quota."""
    return partial(queues.occupy, room, operator.trainer_image)


def hold(kubectl: Kubectl, kind: str, queue: str, *, value: bool) -> None:
    """Let a queue admit nothing, or admit again."""
    patch = json.dumps({"spec": {"stopPolicy": "Hold" if value else "None"}})
    kubectl("patch", kind, queue, "--type=merge", f"--patch={patch}")


def suspended_for(reason: str) -> Callable[[dict[str, Any]], bool]:
    """A check that a job's condition `Suspended` is true for this reason."""

    def holds(job: dict[str, Any]) -> bool:
        found = product.condition(job, "Suspended")
        return (found["status"], found["reason"]) == ("True", reason)

    return holds


def steps(room: Kubectl, name: str) -> list[int]:
    """The steps in the log of TRAIN's newest pod."""
    pods = sorted(
        jobs.stage_pods(room, name, "train"), key=lambda pod: str(pod["metadata"]["creationTimestamp"])
    )
    log = room.run("logs", pods[-1]["metadata"]["name"]).stdout if pods else ""
    return [int(step) for step in re.findall(r"Train Training: (\d+) of", log)]


def trained(room: Kubectl, name: str, step: int) -> list[int]:
    """Wait until the newest pod of TRAIN has reached a step. Return all its steps."""
    found: list[int] = []

    def reached(_job: dict[str, Any]) -> bool:
        found[:] = steps(room, name)
        return max(found, default=0) >= step

    jobs.until(room, name, f"step {step}", seconds=180, holds=reached)
    return found


def test_a_job_is_queued_admitted_preempted_and_finished(room: Kubectl, occupy: Callable[..., str]) -> None:
    first = occupy("first")
    hold(room, "localqueue", queues.CPU_QUEUE, value=True)
    room.apply(jobs.fine_tune_job("life", training=TRAINING, **QUEUES))
    job = jobs.until(room, "life", "PREPARE in its queue", seconds=60, holds=suspended_for("QuotaPending"))
    assert job["status"]["stage"]["name"] == "Prepare"
    assert jobs.all_pods(room, "life") == []
    hold(room, "localqueue", queues.CPU_QUEUE, value=False)
    job = jobs.until(room, "life", "TRAIN in its queue", seconds=180, holds=queues.train_waits)
    assert job["status"]["phase"] == "Suspended"
    assert product.condition(job, "Reconciling")["reason"] == "QuotaPending"
    assert queues.GPU_QUEUE in product.condition(job, "Suspended")["message"]
    assert jobs.stage_pods(room, "life", "train") == []

    queues.leave(room, first)
    jobs.until(
        room, "life", "TRAIN", seconds=60, holds=lambda _job: bool(jobs.stage_pods(room, "life", "train"))
    )
    assert queues.assigned_flavors(room, "life-train-0")[RESOURCE] == "present", "the GPU that fits the job"
    (pod,) = jobs.stage_pods(room, "life", "train")
    assert pod["spec"]["nodeSelector"] == {queues.PRODUCT_LABEL: Gpus().product}
    before = max(trained(room, "life", 3))

    urgent = occupy("urgent", urgent=True)
    job = jobs.until(
        room, "life", "the preemption", seconds=60,
        holds=lambda job: queues.train_waits(job) and not jobs.stage_pods(room, "life", "train"),
    )  # fmt: skip
    assert "goes on from its saved state" in product.condition(job, "Suspended")["message"]
    queues.leave(room, urgent)
    after = trained(room, "life", before + 1)
    assert after[0] >= before, "no step may be repeated"

    job = product.follow(room, "life", seconds=400)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(each["stage"], each["attempt"], each["outcome"]) for each in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
    assert job["status"]["waiting"]["totalSeconds"] > 0
    queues.wait_for("an empty queue", seconds=30, holds=lambda: queues.queued_jobs(room) == [])


def test_a_job_that_is_suspended_while_it_queues_leaves_and_queues_again(
    room: Kubectl, occupy: Callable[..., str]
) -> None:
    first = occupy("first")
    room.apply(jobs.fine_tune_job("pause", training={**TRAINING, "maximumSteps": 8}, **QUEUES))
    jobs.until(room, "pause", "TRAIN in its queue", seconds=180, holds=queues.train_waits)
    jobs.suspend(room, "pause", value=True)
    jobs.until(room, "pause", "Suspended", seconds=30, holds=suspended_for("SuspendedByUser"))
    queues.wait_for("a queue without the job", seconds=30, holds=lambda: queues.queued_jobs(room) == [first])
    queues.leave(room, first)
    second = occupy("second")
    assert jobs.stage_pods(room, "pause", "train") == [], "quota starts no job that the user suspends"
    jobs.suspend(room, "pause", value=False)
    jobs.until(room, "pause", "TRAIN in its queue again", seconds=60, holds=queues.train_waits)
    queues.leave(room, second)
    job = product.follow(room, "pause", seconds=300)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(each["stage"], each["attempt"], each["outcome"]) for each in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 1, "Succeeded"), ("Merge", 0, "Succeeded")]


def test_a_training_that_the_user_suspends_stays_suspended_and_keeps_its_steps(room: Kubectl) -> None:
    room.apply(jobs.fine_tune_job("rest", training=TRAINING, **QUEUES))
    before = max(trained(room, "rest", 3))
    jobs.suspend(room, "rest", value=True)
    jobs.until(
        room, "rest", "Suspended", seconds=60,
        holds=lambda job: suspended_for("SuspendedByUser")(job) and not jobs.all_pods(room, "rest"),
    )  # fmt: skip
    queues.wait_for("an empty queue", seconds=30, holds=lambda: queues.queued_jobs(room) == [])
    jobs.suspend(room, "rest", value=False)
    after = trained(room, "rest", before + 1)
    assert after[0] >= before, "no step may be repeated"
    job = room.json("get", "finetunejob", "rest")
    left = job["status"]["attempts"][-1]
    assert (left["stage"], left["outcome"], left["reason"]) == ("Train", "Interrupted", "SuspendedByUser")


def test_a_job_queues_with_its_priority_class_and_leaves_nothing_when_it_is_deleted(
    room: Kubectl, occupy: Callable[..., str]
) -> None:
    first = occupy("first")
    priority = {"priorityClassName": queues.PRIORITY_CLASS["metadata"]["name"]}
    room.apply(jobs.fine_tune_job("gone", training=TRAINING, resources=priority, **QUEUES))
    jobs.until(room, "gone", "TRAIN in its queue", seconds=180, holds=queues.train_waits)
    assert queues.workloads(room)["gone-train-0"]["spec"]["priority"] == queues.PRIORITY_CLASS["value"]
    room("delete", "finetunejob", "gone", "--wait=true", "--cascade=foreground")
    queues.wait_for("a queue without the job", seconds=30, holds=lambda: queues.queued_jobs(room) == [first])
    assert jobs.all_pods(room, "gone") == []
    assert room.json("get", "jobs", "--selector=finetune.dev/job=gone")["items"] == []


@pytest.mark.usefixtures("volume_classes")
def test_all_pods_of_a_run_are_admitted_or_none(
    room: Kubectl, kubectl: Kubectl, occupy: Callable[..., str]
) -> None:
    with queues.quota(kubectl, 2):
        first = occupy("first")
        small = {"cpu": "250m", "memory": "3Gi"}
        training = {**TRAINING, "maximumSteps": 4, "microBatchSize": 1}
        resources = {"gpus": 2, "gpusPerNode": 1, "train": small}
        room.apply(
            jobs.fine_tune_job(
                "pair", training=training, resources=resources, workspace=jobs.SHARED_WORKSPACE, **QUEUES
            )
        )
        jobs.until(room, "pair", "TRAIN in its queue", seconds=180, holds=queues.train_waits)
        (pod_set,) = queues.workloads(room)["pair-train-0"]["spec"]["podSets"]
        assert pod_set["count"] == 2
        assert jobs.stage_pods(room, "pair", "train") == [], "half of the quota admits no pod"
        queues.leave(room, first)
        jobs.until(
            room, "pair", "both pods", seconds=60,
            holds=lambda _job: len(jobs.stage_pods(room, "pair", "train")) == 2,
        )  # fmt: skip
        job = product.follow(room, "pair", seconds=400)
        assert product.condition(job, "Succeeded")["status"] == "True", job["status"]


def test_the_default_queue_of_a_namespace_holds_jobs_that_name_none(room: Kubectl, kubectl: Kubectl) -> None:
    hold(kubectl, "clusterqueue", queues.CPU_QUEUE, value=True)
    room.apply(queues.local_queue("default", queues.CPU_QUEUE))
    try:
        queues.wait_for(
            "the default queue", seconds=30,
            holds=lambda: bool(room.json("get", "localqueue", "default").get("status", {}).get("conditions")),
        )  # fmt: skip
        room.apply(jobs.fine_tune_job("default", resources=jobs.ONLY_PREPARE))
        job = jobs.until(room, "default", "the wait", seconds=60, holds=suspended_for("QuotaPending"))
        assert "LocalQueue default" in product.condition(job, "Suspended")["message"]
        hold(kubectl, "clusterqueue", queues.CPU_QUEUE, value=False)
        jobs.prepared(room, "default", seconds=120)
        room("delete", "finetunejob", "default", "--wait=true", "--cascade=foreground")
    finally:
        room("delete", "localqueue", "default", "--wait=true")
        hold(kubectl, "clusterqueue", queues.CPU_QUEUE, value=False)
