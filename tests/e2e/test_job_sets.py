"""TRAIN in two pods as a JobSet: the same life as without one, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import Gpus
from devcluster.job_set import JOB_SET
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs, queues
from tests.support.e2e.pairs import in_two_pods, live_through_an_eviction_and_a_suspension, trained
from tests.support.e2e.queues import wait_for

TRAIN_MEMORY, PREPARE_MEMORY = "3584Mi", "3Gi"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.devcluster,
    pytest.mark.full,
    pytest.mark.usefixtures("volume_classes", "job_sets"),
]


@pytest.fixture(scope="module")
def job_sets(operator: ProvidedCluster, kubectl: Kubectl) -> Iterator[None]:
    """JobSet, and an operator that uses it. Two pods of TRAIN must fit on a small machine."""
    with JOB_SET.running(kubectl, operator.trainer_image):
        product.install_chart(
            operator,
            {"jobSets": True, "trainer": {"resources": {"train": {"cpu": "250m", "memory": TRAIN_MEMORY}}}},
        )
        try:
            yield
        finally:
            kubectl("delete", "finetunejobs", "--all", "--all-namespaces", "--wait=true")
            product.install_chart(operator)


def owners(room: Kubectl, name: str) -> set[tuple[str, str]]:
    """Kind and name of the controllers of the Jobs and JobSets of a job's TRAIN."""
    items: list[dict[str, Any]] = room.json("get", "jobs,jobsets")["items"]
    return {
        (item["kind"], item["metadata"]["ownerReferences"][0]["kind"])
        for item in items
        if item["metadata"]["name"].startswith(f"{name}-train-")
    }


def test_a_job_set_trains_in_two_pods_through_an_eviction_and_a_suspension(room: Kubectl) -> None:
    job = live_through_an_eviction_and_a_suspension(room, "set")
    assert jobs.stage_pods(room, "set", "train") == []
    assert job["status"]["plan"]["training"]["nodes"] == 2


def test_a_deleted_job_takes_its_job_set_and_its_pods_with_it(room: Kubectl) -> None:
    room.apply(in_two_pods("gone", maximumSteps=4000))
    trained(room, "gone", 1)
    assert owners(room, "gone") == {("JobSet", "FineTuneJob"), ("Job", "JobSet")}
    room("delete", "finetunejob", "gone", "--wait=true")
    wait_for("neither pods nor Jobs", seconds=120, holds=lambda: not owners(room, "gone"))
    wait_for("no pods", seconds=120, holds=lambda: not jobs.stage_pods(room, "gone", "train"))


def test_a_quota_that_refuses_the_pods_of_a_job_set_is_named(room: Kubectl) -> None:
    """The Job controller tells it of the Job that the JobSet made, which the operator does not watch."""
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.memory": PREPARE_MEMORY}}}
    room.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    try:
        room("wait", "resourcequota/small", "--for=jsonpath={.status.hard}", "--timeout=30s")
        room.apply(in_two_pods("refused"))
        job = jobs.until(room, "refused", "ChildRefused", seconds=300, holds=jobs.waiting("ChildRefused"))
        message = product.condition(job, "Reconciling")["message"]
        assert "refused-train-0 has no pod: FailedCreate: " in message
        assert "exceeded quota: small" in message
    finally:
        room("delete", "resourcequota", "small")
        room("delete", "finetunejob", "refused", "--ignore-not-found", "--wait=true")


def test_all_pods_of_a_job_set_get_quota_or_none_and_a_preemption_loses_no_step(
    room: Kubectl, workplace: Kubectl, kubectl: Kubectl, operator: ProvidedCluster
) -> None:
    image = operator.trainer_image
    with queues.running_queues(kubectl, workplace, image), queues.quota(kubectl, 2):
        first = queues.occupy(room, image, "first")
        room.apply(in_two_pods("queued", queue=queues.GPU_QUEUE))
        jobs.until(room, "queued", "TRAIN in its queue", seconds=180, holds=queues.train_waits)
        workload = queues.workloads(room)["queued-train-0"]
        assert workload["metadata"]["ownerReferences"][0]["kind"] == "JobSet"
        assert [pods["count"] for pods in workload["spec"]["podSets"]] == [2]
        assert jobs.stage_pods(room, "queued", "train") == [], "half of the quota admits no pod"

        queues.leave(room, first)
        before = max(trained(room, "queued", 6))
        pods = jobs.stage_pods(room, "queued", "train")
        assert [pod["spec"]["nodeSelector"][queues.PRODUCT_LABEL] for pod in pods] == [Gpus().product] * 2

        urgent = queues.occupy(room, image, "urgent", urgent=True)
        job = jobs.until(
            room, "queued", "the preemption", seconds=60,
            holds=lambda job: queues.train_waits(job) and not jobs.stage_pods(room, "queued", "train"),
        )  # fmt: skip
        assert "goes on from its saved state" in product.condition(job, "Suspended")["message"]
        queues.leave(room, urgent)
        after = trained(room, "queued", before + 1)
        assert after[0] >= before, "no step may be repeated"

        job = product.follow(room, "queued", seconds=400)
        assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
        attempts = [(each["stage"], each["attempt"], each["outcome"]) for each in job["status"]["attempts"]]
        assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
