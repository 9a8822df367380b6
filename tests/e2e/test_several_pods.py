"""TRAIN in two pods with a GPU each: it ends as one, resumes after a loss of one, and never holds half of its GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.layout import NODE_NAME
from devcluster.pretend_nodes import PretendNodes, gpu_node
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("volume_classes")]

START_SECONDS = 20
TRAINING: dict[str, Any] = {
    "maximumSteps": 80,
    "effectiveBatchSize": 4,
    "microBatchSize": 1,
    "maximumLength": 256,
    "learningRate": 0.001,
    "checkpoint": {"intervalSteps": 5},
}


@pytest.fixture(scope="module")
def patient(operator: ProvidedCluster) -> Iterator[None]:
    """An operator that takes GPUs back soon. The first pod of a real cluster waits longer for the others."""
    product.install_chart(
        operator,
        {
            "startSeconds": START_SECONDS,
            # Two pods of TRAIN must fit on a small machine.
            "trainer": {"resources": {"train": {"cpu": "250m", "memory": "3Gi"}}},
        },
    )
    yield
    product.install_chart(operator)


def in_two_pods(name: str, **training: Any) -> dict[str, Any]:
    return jobs.fine_tune_job(
        name,
        training={**TRAINING, **training},
        resources={"gpus": 2, "gpusPerNode": 1},
        workspace=jobs.SHARED_WORKSPACE,
    )


def running(room: Kubectl, name: str) -> list[dict[str, Any]]:
    pods = jobs.stage_pods(room, name, "train")
    return [pod for pod in pods if pod["status"]["phase"] == "Running"]


def pod_of(room: Kubectl, name: str, index: int) -> str | None:
    """The name of the running pod with this number; None if there is none."""
    found = [
        pod["metadata"]["name"]
        for pod in running(room, name)
        if pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == str(index)
    ]
    return found[0] if found else None


def trained(room: Kubectl, name: str, step: int) -> list[int]:
    """Wait until both pods run and the first one has reached a step. Return all its steps."""
    found: list[int] = []

    def reached(_job: dict[str, Any]) -> bool:
        first = pod_of(room, name, 0)
        log = "" if first is None else room.run("logs", first).stdout
        found[:] = [int(each) for each in re.findall(r"Training: (\d+) of", log)]
        return pod_of(room, name, 1) is not None and max(found, default=0) >= step

    jobs.until(room, name, f"step {step}", seconds=300, holds=reached)
    return found


@pytest.mark.usefixtures("patient")
def test_two_pods_train_as_one_through_an_eviction_and_a_suspension(room: Kubectl) -> None:
    room.apply(in_two_pods("pair"))
    before = max(trained(room, "pair", 6))
    second = pod_of(room, "pair", 1)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": second}}
    path = f"/api/v1/namespaces/{room.namespace}/pods/{second}/eviction"
    room("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    jobs.until(
        room, "pair", "other pods", seconds=120, holds=lambda _: pod_of(room, "pair", 1) not in {None, second}
    )
    after = trained(room, "pair", before + 1)
    assert after[0] >= before - before % 5, "no step before the checkpoint may be repeated"
    jobs.suspend(room, "pair", value=True)
    jobs.until(
        room, "pair", "Suspended", seconds=60,
        holds=lambda job: product.condition(job, "Suspended")["status"] == "True"
        and not jobs.all_pods(room, "pair"),
    )  # fmt: skip
    jobs.suspend(room, "pair", value=False)
    resumed = trained(room, "pair", max(after) + 1)
    assert resumed[0] >= max(after), "a suspended training saves its last step"
    job = product.follow(room, "pair", seconds=500)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [
        ("Prepare", 0, "Succeeded"),
        ("Train", 0, "Interrupted"),
        ("Train", 1, "Succeeded"),
        ("Merge", 0, "Succeeded"),
    ]
    training = job["status"]["plan"]["training"]
    assert (training["nodes"], training["gpusPerNode"]) == (2, 1)
    assert jobs.stage_pods(room, "pair", "train") == []


@pytest.mark.usefixtures("patient")
def test_a_lost_node_and_a_missing_gpu_give_back_the_gpu_of_the_other_pod(
    room: Kubectl, pretend_nodes: PretendNodes
) -> None:
    container = {
        "name": "main",
        "image": "registry.invalid/none:1",
        "securityContext": product.RESTRICTED_CONTAINER,
        "resources": {"limits": {RESOURCE: "1"}},
    }
    pod = {"securityContext": product.RESTRICTED_POD, "containers": [container]}
    room.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": pod})
    room("wait", "pod/other", "--for=condition=PodScheduled", "--timeout=60s")
    pretend_nodes.add(gpu_node("pretend-half", Gpus(count=1)))
    room.apply(in_two_pods("half", maximumSteps=2))
    jobs.until(
        room, "half", "a pod on each node", seconds=300,
        holds=lambda _: {each["spec"].get("nodeName") for each in jobs.stage_pods(room, "half", "train")}
        == {NODE_NAME, "pretend-half"},
    )  # fmt: skip
    pretend_nodes.remove("pretend-half")
    job = jobs.until(room, "half", "PodStuck", seconds=300, holds=jobs.stalled("PodStuck"))
    lost, stuck = job["status"]["attempts"][-2:]
    assert (lost["stage"], lost["outcome"], stuck["reason"]) == ("Train", "Interrupted", "PodStuck")
    message = product.condition(job, "Stalled")["message"]
    assert "only 1 of the 2 pods of the run got GPUs" in message
    jobs.until(room, "half", "no pod", seconds=60, holds=lambda _: not jobs.stage_pods(room, "half", "train"))
    room("delete", "pod", "other", "--grace-period=0", "--force")
    ended = product.follow(room, "half", seconds=400)
    assert product.condition(ended, "Succeeded")["status"] == "True", ended["status"]
