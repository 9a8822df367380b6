"""After repeated forced deletions of its PREPARE pod, a job's results equal an undisturbed job's, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.pod_killer import PodKiller, points
from tests.support.e2e.stores import ObjectStore, s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.model]

MODELS = REPOSITORY / ".finetune" / "volumes" / "quickstart" / "models"
SEED = 7
FEW = {"fetch": 1, "prove": 1, "quantize": 1}
TEN = {"start": 1, "fetch": 2, "prove": 4, "quantize": 2, "analyze": 1}
ROWS = 8_000
# Not part of the training text; it only makes the file large enough that the download takes a while.
PADDING = "x" * 8192


def rows() -> bytes:
    """Return rows that take seconds to verify, in a file that takes a moment to fetch."""
    lines = [json.dumps({**row, "note": PADDING}) + "\n" for row in jobs.conversations(ROWS)]
    return "".join(lines).encode()


def digests(kubectl: Kubectl, image: str, job: str) -> dict[str, str]:
    """Return the SHA-256 of every file of the dataset, base, model and report in a job's workspace.

    The page on the whole job and its data name the times of the attempts, so these two differ.
    """
    pages = "! -path report/index.html ! -path report/job.json"
    command = f"cd /volume && find -L dataset base model report -type f {pages} | sort | xargs sha256sum"
    with product.volume_pod(kubectl, f"{job}-workspace", image) as pod:
        listed = kubectl("exec", pod, "--", "sh", "-c", command)
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in listed.splitlines())}


def prepare_job(name: str, endpoint: str) -> dict[str, Any]:
    """Return a job on the real 135M model that stops after PREPARE and allows no retry."""
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


@dataclass(frozen=True)
class Undisturbed:
    """The store of the rows, and an undisturbed job on them: its status and its workspace's digests."""

    store: ObjectStore
    status: dict[str, Any]
    digests: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(
    workplace: Kubectl, operator: ProvidedCluster, private_addresses: None
) -> Iterator[Undisturbed]:
    """PREPARE of the real model and 8,000 rows, without a kill."""
    del private_addresses
    image = operator.trainer_image
    with product.volume_pod(workplace, jobs.CLAIM, image) as pod:
        product.fill_volume(workplace, pod, MODELS, "models")
    with s3_server(workplace, image, ["rows"]) as store:
        store.put("rows", "rows.jsonl", rows())
        workplace.apply(jobs.secret("store", store.credentials), prepare_job("calm", store.endpoint))
        status = jobs.prepared(workplace, "calm", seconds=180)["status"]
        yield Undisturbed(store, status, digests(workplace, image, "calm"))


@pytest.mark.parametrize("counts", [FEW, pytest.param(TEN, marks=pytest.mark.full)], ids=["few", "ten"])
def test_kills_change_no_byte_and_use_up_no_attempt(
    counts: dict[str, int], undisturbed: Undisturbed, room: Kubectl, operator: ProvidedCluster
) -> None:
    name = f"killed-{sum(counts.values())}"
    room.apply(prepare_job(name, undisturbed.store.endpoint))
    with PodKiller(room, name) as killer:
        killer.run(points(SEED, counts), seconds=600)
    killed = jobs.prepared(room, name, seconds=180)["status"]

    phases = Counter(kill.phase for kill in killer.kills)
    print(*killer.kills, sep="\n")
    assert sum(phases.values()) == sum(counts.values())
    assert set(phases) >= {"fetch", "prove", "quantize"}, "kills are spread over the phases"
    outcomes = Counter((a["stage"], a["outcome"], a["reason"]) for a in killed["attempts"])
    assert outcomes[("Prepare", "Succeeded", "StageSucceeded")] == 1
    assert not [key for key in outcomes if key[1] == "Failed"]
    calm = undisturbed.status
    assert killed["dataset"]["digest"] == calm["dataset"]["digest"]
    assert killed["model"]["digest"] == calm["model"]["digest"]
    assert killed["dataset"] == calm["dataset"]
    assert any(path.endswith(".safetensors") for path in undisturbed.digests)
    assert digests(room, operator.trainer_image, name) == undisturbed.digests
