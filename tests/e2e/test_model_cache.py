"""Jobs that name a model cache quantise a base model once; TRAIN and MERGE read it without being able to write."""

from __future__ import annotations

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster

CACHE = "bases"


def entries(kubectl: Kubectl, image: str) -> list[str]:
    """The cache's entries, each with the time at which its manifest was written; hidden ones are half done."""
    with product.volume_pod(kubectl, CACHE, image) as pod:
        listed = kubectl(
            "exec", pod, "--", "sh", "-c", "cd /volume && stat -c '%n %Y' */manifest.json; ls -A"
        )
    return sorted(line for line in listed.splitlines() if line.startswith(("nf4-", ".")))


def test_the_second_job_takes_the_first_ones_base_and_both_end_well(
    assets: Kubectl, operator: ProvidedCluster
) -> None:
    assets.apply(product.claim(CACHE, "1Gi"), jobs.config_map("data", jobs.jsonl(jobs.conversations(24))))
    kept = {"keepChildrenSeconds": {"success": 3600, "failure": 3600}}
    cache = {"claimName": CACHE}
    assets.apply(jobs.fine_tune_job("first", modelCache=cache))
    first = product.follow(assets, "first", seconds=300)
    assert product.condition(first, "Succeeded")["status"] == "True", first["status"]
    before = entries(assets, operator.trainer_image)
    assert len([line for line in before if "manifest.json" in line]) == 1
    assert not [line for line in before if line.startswith(".nf4")]

    assets.apply(jobs.fine_tune_job("second", modelCache=cache, resources=jobs.ONLY_PREPARE, lifecycle=kept))
    second = jobs.prepared(assets, "second", seconds=120)
    assert "model cache: using entry" in assets("logs", "job/second-prepare-0")
    assert second["status"]["model"] == first["status"]["model"]
    assert entries(assets, operator.trainer_image) == before
