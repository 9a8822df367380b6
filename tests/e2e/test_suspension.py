"""Suspending a job releases its GPU and keeps its training progress."""

from __future__ import annotations

import re
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
    def steps() -> list[int]:
        """The steps in the log of TRAIN's pod. The status may have them half a minute later."""
        pods = [pod["metadata"]["name"] for pod in jobs.stage_pods(room, "pause", "train")]
        log = room.run("logs", pods[0]).stdout if pods else ""
        return [int(step) for step in re.findall(r"Train Training: (\d+) of", log)]

    room.apply(jobs.fine_tune_job("pause", training=TRAINING))
    reached: list[int] = []

    def training_has_begun(_job: dict[str, Any]) -> bool:
        reached[:] = steps()
        return max(reached, default=0) >= 3

    jobs.until(room, "pause", "the third step", seconds=180, holds=training_has_begun)
    jobs.suspend(room, "pause", value=True)
    jobs.until(
        room, "pause", "Suspended", seconds=60,
        holds=lambda job: product.condition(job, "Suspended")["status"] == "True"
        and not jobs.all_pods(room, "pause"),
    )  # fmt: skip
    before = max(reached)
    jobs.suspend(room, "pause", value=False)
    resumed = jobs.until(room, "pause", "training again", seconds=180, holds=training_has_begun)
    assert product.condition(resumed, "Suspended")["status"] == "False"
    assert reached[0] >= before, "no step may be repeated"
    job = product.follow(room, "pause", seconds=400)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]
