"""Jobs that share a model cache quantize a base model once; TRAIN and MERGE mount the cache read-only."""

from __future__ import annotations

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.tiny_runs import CACHE, TinyRuns

pytestmark = pytest.mark.cluster


def entries(kubectl: Kubectl, image: str) -> list[str]:
    """Return the cache's entries, each with the write time of its manifest; hidden entries are unfinished."""
    with product.volume_pod(kubectl, CACHE, image) as pod:
        listed = kubectl(
            "exec", pod, "--", "sh", "-c", "cd /volume && stat -c '%n %Y' */manifest.json; ls -A"
        )
    return sorted(line for line in listed.splitlines() if line.startswith(("nf4-", ".")))


def test_a_second_job_takes_the_base_that_the_first_quantized(
    tiny_runs: TinyRuns, room: Kubectl, operator: ProvidedCluster
) -> None:
    first = tiny_runs.good
    assert product.condition(first, "Succeeded")["status"] == "True", first["status"]
    before = entries(room, operator.trainer_image)
    assert len([line for line in before if "manifest.json" in line]) == 1
    assert not [line for line in before if line.startswith(".nf4")]

    kept = {"keepChildrenSeconds": {"success": 3600, "failure": 3600}}
    cache = {"claimName": CACHE}
    room.apply(jobs.fine_tune_job("second", modelCache=cache, resources=jobs.ONLY_PREPARE, lifecycle=kept))
    second = jobs.prepared(room, "second", seconds=120)
    assert "model cache: using entry" in room("logs", "job/second-prepare-0")
    assert second["status"]["model"] == first["status"]["model"]
    assert entries(room, operator.trainer_image) == before
