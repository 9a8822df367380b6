"""Jobs whose TRAIN runs in two pods with a GPU each."""

from __future__ import annotations

import json
import re
from typing import Any

from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import jobs

TRAINING: dict[str, Any] = {
    "maximumSteps": 80,
    "effectiveBatchSize": 4,
    "microBatchSize": 1,
    "maximumLength": 256,
    "learningRate": 0.001,
    "checkpoint": {"intervalSteps": 5},
}


def in_two_pods(name: str, queue: str | None = None, **training: Any) -> dict[str, Any]:
    queued: dict[str, Any] = {"queueName": queue} if queue else {}
    return jobs.fine_tune_job(
        name,
        training={**TRAINING, **training},
        resources={"gpus": 2, "gpusPerNode": 1},
        workspace=jobs.SHARED_WORKSPACE,
        **queued,
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


def evict_second(room: Kubectl, name: str) -> None:
    """Evict the second pod, and wait until another one runs."""
    second = pod_of(room, name, 1)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": second}}
    path = f"/api/v1/namespaces/{room.namespace}/pods/{second}/eviction"
    room("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    jobs.until(
        room, name, "other pods", seconds=120, holds=lambda _: pod_of(room, name, 1) not in {None, second}
    )


def live_through_an_eviction_and_a_suspension(room: Kubectl, name: str) -> dict[str, Any]:
    """Create a job, evict a pod of its TRAIN, suspend and resume it, and return it after its success."""
    room.apply(in_two_pods(name))
    before = max(trained(room, name, 6))
    evict_second(room, name)
    after = trained(room, name, before + 1)
    assert after[0] >= before - before % 5, "no step before the checkpoint may be repeated"
    jobs.suspend(room, name, value=True)
    jobs.until(
        room, name, "Suspended", seconds=60,
        holds=lambda job: product.condition(job, "Suspended")["status"] == "True"
        and not jobs.all_pods(room, name),
    )  # fmt: skip
    jobs.suspend(room, name, value=False)
    resumed = trained(room, name, max(after) + 1)
    assert resumed[0] >= max(after), "a suspended training saves its last step"
    job = product.follow(room, name, seconds=500)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [
        ("Prepare", 0, "Succeeded"),
        ("Train", 0, "Interrupted"),
        ("Train", 1, "Succeeded"),
        ("Merge", 0, "Succeeded"),
    ]
    return job
