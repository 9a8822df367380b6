"""Suspending gives the GPU back and keeps what was learned."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.cluster import jobs

pytestmark = pytest.mark.cluster

STEPS = 400
TRAINING: dict[str, Any] = {
    "maximumSteps": STEPS,
    "effectiveBatchSize": 2,
    "microBatchSize": 2,
    "maximumLength": 256,
    "learningRate": 0.001,
}


def _wait_for(kubectl: Kubectl, name: str, what: str, seconds: float, holds: Any) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job: dict[str, Any] = kubectl.json("get", "finetunejob", name)
        if holds(job):
            return job
        time.sleep(0.5)
    pytest.fail(f"{what} must be seen within {seconds} s, the status is {json.dumps(job.get('status'))}")


def test_a_suspended_job_leaves_its_gpu_and_goes_on_from_its_checkpoint(assets: Kubectl) -> None:
    def suspend(*, value: bool) -> None:
        assets(
            "patch",
            "finetunejob",
            "pause",
            "--type=merge",
            f"--patch={json.dumps({'spec': {'suspend': value}})}",
        )

    def training_has_begun(job: dict[str, Any]) -> bool:
        progress = job["status"].get("progress") or {}
        return progress.get("activity") == "Training" and progress.get("step", 0) >= 3

    assets.apply(
        jobs.config_map("data", jobs.jsonl(jobs.conversations(24))),
        jobs.fine_tune_job("pause", training=TRAINING),
    )
    _wait_for(assets, "pause", "the third step", 120, training_has_begun)
    suspend(value=True)
    _wait_for(
        assets, "pause", "Suspended", 60,
        lambda job: product.condition(job, "Suspended")["status"] == "True"
        and not assets.json("get", "pods")["items"],
    )  # fmt: skip
    reached = assets.json("get", "finetunejob", "pause")["status"]["progress"]["step"]
    suspend(value=False)
    resumed = _wait_for(
        assets, "pause", "training again", 120,
        lambda job: training_has_begun(job) and product.condition(job, "Suspended")["status"] == "False",
    )  # fmt: skip
    assert resumed["status"]["progress"]["step"] >= reached > 0
    job = product.follow(assets, "pause", seconds=400)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
