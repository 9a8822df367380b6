"""A job is placed where all its stages can run: zones, volumes with limited reach, and shared caches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import Gpus, first_node
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import ZONE_LABEL, PretendNode, PretendNodes, gpu_node
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.object_recorder import ObjectRecorder

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("volume_classes")]

HERE, THERE = "zone-a", "zone-b"
NO_GPUS = Gpus(count=0)
ZONAL_WORKSPACE = {"size": "1Gi", "storageClassName": "zonal"}

SetGpus = Callable[[Gpus], None]


@pytest.fixture
def real_node(kubectl: Kubectl) -> Iterator[str]:
    """Name of the node that really runs pods; it is in the zone HERE during a test."""
    name = first_node(kubectl)
    kubectl("label", "node", name, f"{ZONE_LABEL}={HERE}")
    yield name
    kubectl("label", "node", name, f"{ZONE_LABEL}-")


def cpu_node(zone: str) -> PretendNode:
    """Return a node without GPUs that any pod may use."""
    return PretendNode("pretend-cpu", zone=zone)


def zonal_claim(name: str) -> dict[str, Any]:
    """Return a claim whose volume works only in the zone of its first pod."""
    body = product.claim(name, "1Gi")
    body["spec"]["storageClassName"] = "zonal"
    return body


def test_prepare_goes_to_the_zone_of_the_gpus(
    room: Kubectl, gpus: SetGpus, pretend_nodes: PretendNodes, real_node: str
) -> None:
    """Its volume binds in the zone of PREPARE; in the other zone TRAIN could never reach it."""
    del real_node
    gpus(NO_GPUS)
    pretend_nodes.add(gpu_node("pretend-gpu", Gpus(count=1), THERE), cpu_node(THERE))
    # A source that nodes of both zones can read.
    dataset = {"configMap": {"name": "data", "key": "data.jsonl"}}
    job = jobs.fine_tune_job("zones", dataset=dataset, workspace=ZONAL_WORKSPACE)
    job["spec"]["model"] = {"source": {"huggingFace": {"repository": "org/model"}}}
    job["spec"]["output"] = {"destination": {"persistentVolumeClaim": {"claimName": "anywhere"}}}
    room.apply(_shared_claim("anywhere", "ReadWriteMany"), job)
    pod = jobs.bound(room, "zones", "prepare", "pretend-cpu", seconds=30)
    assert jobs.required_values(pod, ZONE_LABEL) == {THERE}


def test_a_workspace_in_a_zone_without_gpus_stalls_until_there_is_one(
    cluster: ProvidedCluster, room: Kubectl, gpus: SetGpus, pretend_nodes: PretendNodes, real_node: str
) -> None:
    gpus(NO_GPUS)
    pretend_nodes.add(gpu_node("pretend-gpu", Gpus(count=1), THERE))
    room.apply(zonal_claim("bound"))
    with product.volume_pod(room, "bound", cluster.trainer_image):
        pass
    with ObjectRecorder(cluster.kubeconfig, str(room.namespace)) as seen:
        room.apply(jobs.fine_tune_job("mismatch", workspace={"existingClaim": "bound"}))
        job = jobs.until(
            room, "mismatch", "WorkspaceZoneMismatch", seconds=90, holds=jobs.stalled("WorkspaceZoneMismatch")
        )
        stalled, succeeded = (product.condition(job, kind) for kind in ("Stalled", "Succeeded"))
        assert succeeded["status"] == "Unknown"
        assert HERE in stalled["message"]
        assert seen.gpu_pods == []
    gpus(Gpus(count=1))
    pod = jobs.bound(room, "mismatch", "train", real_node, seconds=120)
    assert pod["spec"]["nodeName"] == real_node
    job = product.follow(room, "mismatch", seconds=180)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]


def test_a_cache_that_one_node_alone_can_use_is_refused_where_several_would(
    room: Kubectl, gpus: SetGpus, pretend_nodes: PretendNodes
) -> None:
    gpus(NO_GPUS)
    pretend_nodes.add(gpu_node("pretend-one", Gpus(count=1)), gpu_node("pretend-two", Gpus(count=1)))
    room.apply(_shared_claim("cache", "ReadWriteOnce"))
    cache = {"claimName": "cache"}
    room.apply(jobs.fine_tune_job("cached", modelCache=cache, workspace=jobs.SHARED_WORKSPACE))
    job = jobs.until(
        room, "cached", "ModelCacheNotShared", seconds=90,
        holds=lambda job: "ModelCacheNotShared" in json.dumps(job.get("status", {}).get("conditions", [])),
    )  # fmt: skip
    told = [found for found in job["status"]["conditions"] if found["reason"] == "ModelCacheNotShared"]
    assert "ReadWriteMany" in told[0]["message"]
    assert jobs.stage_pods(room, "cached", "train") == []


def _shared_claim(name: str, mode: str) -> dict[str, Any]:
    body = product.claim(name, "1Gi")
    body["spec"] |= {"storageClassName": "shared", "accessModes": [mode]}
    return body
