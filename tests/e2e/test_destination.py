"""A destination that fails after the training is waited for, and the model is not trained again."""

from __future__ import annotations

import json

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs

pytestmark = [pytest.mark.cluster, pytest.mark.full]

FOREIGN = json.dumps({"specHash": "sha256:" + "1" * 64})


def test_merge_alone_is_tried_again_until_its_destination_is_free(
    room: Kubectl, operator: ProvidedCluster
) -> None:
    folder = "/volume/outputs/late"
    with product.volume_pod(room, jobs.CLAIM, operator.trainer_image) as pod:
        room.apply(jobs.fine_tune_job("late"))
        jobs.until(
            room, "late", "TRAIN", seconds=120,
            holds=lambda job: job.get("status", {}).get("stage", {}).get("name") == "Train",
        )  # fmt: skip
        room("exec", pod, "--", "sh", "-c", f"mkdir -p {folder} && echo '{FOREIGN}' > {folder}/manifest.json")
        waiting = jobs.until(
            room, "late", "WaitingForDestination", seconds=180, holds=jobs.waiting("WaitingForDestination")
        )
        message = product.condition(waiting, "Reconciling")["message"]
        assert "the manifest.json of another job" in message
        assert product.condition(waiting, "Succeeded")["status"] == "Unknown"
        assert product.condition(waiting, "Trained")["status"] == "True"
        room("exec", pod, "--", "rm", f"{folder}/manifest.json")
    job = product.follow(room, "late", seconds=180)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(a["stage"], a["outcome"]) for a in job["status"]["attempts"]]
    merges = [outcome for stage, outcome in attempts if stage == "Merge"]
    assert attempts[:2] == [("Prepare", "Succeeded"), ("Train", "Succeeded")]
    assert merges == ["Failed"] * (len(merges) - 1) + ["Succeeded"]
    assert len(merges) >= 2
