"""PREPARE's pod is deleted by force ten times in a row; what comes out is what an undisturbed job gives, to the byte."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.pod_killer import PodKiller, points
from tests.support.e2e.stores import s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.model]

MODELS = REPOSITORY / ".finetune" / "volumes" / "quickstart" / "models"
SEED = 7
COUNTS = {"start": 1, "fetch": 2, "prove": 4, "quantise": 2, "analyse": 1}
ROWS = 8_000
# Not part of what is learned: it only makes the file long enough to be fetched for a while.
PADDING = "x" * 8192


def rows() -> bytes:
    """Rows whose proof takes seconds and whose file takes a moment to fetch."""
    lines = [json.dumps({**row, "note": PADDING}) + "\n" for row in jobs.conversations(ROWS)]
    return "".join(lines).encode()


def digests(kubectl: Kubectl, image: str, job: str) -> dict[str, str]:
    """SHA-256 of every file of the tables, the base, the quantised model and the report in a job's workspace."""
    command = "cd /volume && find -L dataset base model report -type f | sort | xargs sha256sum"
    with product.volume_pod(kubectl, f"{job}-workspace", image) as pod:
        listed = kubectl("exec", pod, "--", "sh", "-c", command)
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in listed.splitlines())}


def prepare_job(name: str, endpoint: str) -> dict[str, Any]:
    """A job on the real 135M model that stops after PREPARE and allows no retry."""
    dataset = {"s3": {"uri": "s3://rows/rows.jsonl", "endpoint": endpoint, "secretRef": {"name": "store"}}}
    model = {
        "source": {"persistentVolumeClaim": {"claimName": jobs.CLAIM, "path": "models/SmolLM2-135M-Instruct"}}
    }
    return jobs.fine_tune_job(
        name,
        dataset=dataset,
        model=model,
        resources=jobs.ONLY_PREPARE,
        lifecycle={"retries": 0},
        workspace={"size": "2Gi"},
    )


def test_ten_kills_change_no_byte_and_use_up_no_attempt(
    assets: Kubectl, operator: ProvidedCluster, private_addresses: None
) -> None:
    del private_addresses
    with product.volume_pod(assets, jobs.CLAIM, operator.trainer_image) as pod:
        product.fill_volume(assets, pod, MODELS, "models")
    with s3_server(assets, operator.trainer_image, ["rows"]) as store:
        store.put("rows", "rows.jsonl", rows())
        assets.apply(jobs.secret("store", store.credentials), prepare_job("calm", store.endpoint))
        calm = jobs.prepared(assets, "calm", seconds=180)["status"]

        assets.apply(prepare_job("killed", store.endpoint))
        with PodKiller(assets, "killed") as killer:
            killer.run(points(SEED, COUNTS), seconds=600)
        killed = jobs.prepared(assets, "killed", seconds=180)["status"]

    phases = Counter(kill.phase for kill in killer.kills)
    print(*killer.kills, sep="\n")
    assert sum(phases.values()) == sum(COUNTS.values()) == 10
    assert set(phases) >= {"fetch", "prove", "quantise"}, "kills are spread over the phases"
    outcomes = Counter((a["stage"], a["outcome"], a["reason"]) for a in killed["attempts"])
    assert outcomes[("Prepare", "Succeeded", "StageSucceeded")] == 1
    assert not [key for key in outcomes if key[1] == "Failed"]
    assert killed["dataset"]["digest"] == calm["dataset"]["digest"]
    assert killed["model"]["digest"] == calm["model"]["digest"]
    assert killed["dataset"] == calm["dataset"]
    first = digests(assets, operator.trainer_image, "calm")
    second = digests(assets, operator.trainer_image, "killed")
    assert any(path.endswith(".safetensors") for path in first)
    assert second == first
