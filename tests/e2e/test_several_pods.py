"""TRAIN in two pods with a GPU each: it ends as one, resumes after an eviction, and never holds half of its GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("volume_classes")]

START_SECONDS = 20
TRAINING: dict[str, Any] = {
    "maximumSteps": 60,
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


@pytest.mark.usefixtures("patient")
def test_two_pods_train_as_one_and_resume_after_an_eviction(room: Kubectl) -> None:
    room.apply(in_two_pods("pair"))

    def trained_for_some_steps(_job: dict[str, Any]) -> bool:
        pods = running(room, "pair")
        first = [pod["metadata"]["name"] for pod in pods if "-train-0-0-" in pod["metadata"]["name"]]
        log = room.run("logs", first[0]).stdout if first else ""
        return len(pods) == 2 and any(int(step) >= 6 for step in re.findall(r"Training: (\d+) of", log))

    jobs.until(room, "pair", "six steps", seconds=300, holds=trained_for_some_steps)
    (second,) = [
        pod["metadata"]["name"] for pod in running(room, "pair") if "-train-0-1-" in pod["metadata"]["name"]
    ]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": second}}
    path = f"/api/v1/namespaces/{room.namespace}/pods/{second}/eviction"
    room("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
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
def test_a_pod_that_finds_no_gpu_gives_back_that_of_the_other(room: Kubectl) -> None:
    container = {
        "name": "main",
        "image": "registry.invalid/none:1",
        "securityContext": product.RESTRICTED_CONTAINER,
        "resources": {"limits": {RESOURCE: "1"}},
    }
    pod = {"securityContext": product.RESTRICTED_POD, "containers": [container]}
    room.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": pod})
    room("wait", "pod/other", "--for=condition=PodScheduled", "--timeout=60s")
    room.apply(in_two_pods("half", maximumSteps=2))
    job = jobs.until(room, "half", "PodStuck", seconds=300, holds=jobs.stalled("PodStuck"))
    message = product.condition(job, "Stalled")["message"]
    assert "only 1 of the 2 pods of the run got GPUs" in message
    jobs.until(room, "half", "no pod", seconds=60, holds=lambda _: not jobs.stage_pods(room, "half", "train"))
    room("delete", "pod", "other", "--grace-period=0", "--force")
    ended = product.follow(room, "half", seconds=400)
    assert product.condition(ended, "Succeeded")["status"] == "True", ended["status"]
