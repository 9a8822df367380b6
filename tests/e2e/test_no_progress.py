"""A trainer that hangs is stopped, and the training goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import jobs

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]

LIMIT = 30
TRAINING: dict[str, Any] = {
    "maximumSteps": 300,
    "effectiveBatchSize": 2,
    "microBatchSize": 2,
    "maximumLength": 256,
    "learningRate": 0.001,
    "checkpoint": {"intervalSteps": 5},
}


def processes_of(pod_uid: str) -> list[int]:
    """Return the processes of a pod of the dev cluster, which runs on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            groups, command = (folder / "cgroup").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if pod_uid in groups and "finetune_trainer" in command:
            found.append(int(folder.name))
    return found


def test_a_trainer_that_hangs_is_stopped_and_training_goes_on(room: Kubectl) -> None:
    room.apply(
        jobs.fine_tune_job("hang", training=TRAINING, lifecycle={"noProgressSeconds": LIMIT, "retries": 1})
    )
    jobs.until(
        room, "hang", "a checkpoint", seconds=180,
        holds=lambda job: job.get("status", {}).get("progress", {}).get("activity") == "Training"
        and job["status"]["progress"]["step"] >= 6,
    )  # fmt: skip
    (pod,) = jobs.stage_pods(room, "hang", "train")
    stopped = processes_of(pod["metadata"]["uid"])
    assert stopped
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    ended = jobs.until(
        room, "hang", "the end of the attempt", seconds=4 * LIMIT,
        holds=lambda job: any(each["stage"] == "Train" for each in job["status"].get("attempts", ())),
    )  # fmt: skip
    attempt = ended["status"]["attempts"][-1]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "NoProgress")
    assert "accepts connections without answering" in attempt["message"]
    job = product.follow(room, "hang", seconds=400)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    outcomes = [(each["stage"], each["outcome"]) for each in job["status"]["attempts"]]
    assert outcomes == [
        ("Prepare", "Succeeded"),
        ("Train", "Failed"),
        ("Train", "Succeeded"),
        ("Merge", "Succeeded"),
    ]
