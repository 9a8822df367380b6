"""Suspending a job releases its GPU and keeps its training progress."""

from __future__ import annotations

import json
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster

STEPS = 400
TRAINING: dict[str, Any] = {
    "maximumSteps": STEPS,
    "effectiveBatchSize": 2,
    "microBatchSize": 2,
    "maximumLength": 256,
    "learningRate": 0.001,
}


def test_a_suspended_job_leaves_its_gpu_and_goes_on_from_its_checkpoint(room: Kubectl) -> None:
    def suspend(*, value: bool) -> None:
        room(
            "patch",
            "finetunejob",
            "pause",
            "--type=merge",
            f"--patch={json.dumps({'spec': {'suspend': value}})}",
        )

    def training_has_begun(job: dict[str, Any]) -> bool:
        progress = job.get("status", {}).get("progress") or {}
        return progress.get("activity") == "Training" and progress.get("step", 0) >= 3

    room.apply(jobs.fine_tune_job("pause", training=TRAINING))
    jobs.until(room, "pause", "the third step", seconds=120, holds=training_has_begun)
    suspend(value=True)
    jobs.until(
        room, "pause", "Suspended", seconds=60,
        holds=lambda job: product.condition(job, "Suspended")["status"] == "True"
        and not jobs.all_pods(room, "pause"),
    )  # fmt: skip
    reached = room.json("get", "finetunejob", "pause")["status"]["progress"]["step"]
    suspend(value=False)
    resumed = jobs.until(
        room, "pause", "training again", seconds=120,
        holds=lambda job: training_has_begun(job) and product.condition(job, "Suspended")["status"] == "False",
    )  # fmt: skip
    assert resumed["status"]["progress"]["step"] >= reached > 0
    job = product.follow(room, "pause", seconds=400)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
