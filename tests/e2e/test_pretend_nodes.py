"""Pretend nodes in tests: the real scheduler binds pods to them, and they are removed completely."""

from __future__ import annotations

from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import ZONE_LABEL, PretendNode, PretendNodes, gpu_node

pytestmark = pytest.mark.cluster

TOLERANT = [{"key": RESOURCE, "operator": "Exists"}]


def pod(name: str, **spec: Any) -> dict[str, Any]:
    """Return a pod that the restricted level admits and that no kubelet starts."""
    container = {
        "name": "main",
        "image": "registry.invalid/none:1",
        "securityContext": product.RESTRICTED_CONTAINER,
        **spec.pop("container", {}),
    }
    pod_spec = {"securityContext": product.RESTRICTED_POD, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec}


def scheduled(room: Kubectl, name: str) -> str:
    """Wait until a pod is bound, and return its node."""
    room("wait", f"pod/{name}", "--for=condition=PodScheduled", "--timeout=30s")
    return str(room.json("get", "pod", name)["spec"]["nodeName"])


def test_a_pod_that_asks_for_its_gpu_is_bound_deleted_and_gone(
    kubectl: Kubectl, namespace: str, pretend_nodes: PretendNodes
) -> None:
    room = kubectl.within(namespace)
    pretend_nodes.add(gpu_node("pretend-gpu", Gpus(count=1)))
    wanted = {
        "nodeSelector": {"kubernetes.io/hostname": "pretend-gpu"},
        "container": {"resources": {"limits": {RESOURCE: "1"}}},
    }
    room.apply(pod("tolerant", tolerations=TOLERANT, **wanted))
    assert scheduled(room, "tolerant") == "pretend-gpu"
    room("delete", "pod", "tolerant", "--wait=true", "--timeout=30s")
    room.apply(pod("stranger", **wanted))
    room("wait", "pod/stranger", "--for=condition=PodScheduled=False", "--timeout=30s")


def test_a_node_that_is_removed_takes_its_pods_with_it(
    kubectl: Kubectl, namespace: str, pretend_nodes: PretendNodes
) -> None:
    room = kubectl.within(namespace)
    pretend_nodes.add(PretendNode("pretend-brief"))
    room.apply(pod("guest", nodeSelector={"kubernetes.io/hostname": "pretend-brief"}))
    assert scheduled(room, "guest") == "pretend-brief"
    assert pretend_nodes.pods_on("pretend-brief") == ["guest"]
    pretend_nodes.remove("pretend-brief")
    assert room.json("get", "pods")["items"] == []
    assert kubectl.run("get", "node", "pretend-brief").returncode != 0


@pytest.mark.usefixtures("volume_classes")
def test_a_zonal_volume_holds_its_pods_in_the_zone_of_the_first(
    kubectl: Kubectl, namespace: str, pretend_nodes: PretendNodes
) -> None:
    room = kubectl.within(namespace)
    pretend_nodes.add(PretendNode("pretend-a", zone="zone-a"), PretendNode("pretend-b", zone="zone-b"))
    claim = product.claim("data", "1Gi")
    claim["spec"]["storageClassName"] = "zonal"
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    room.apply(claim, pod("first", nodeSelector={ZONE_LABEL: "zone-b"}, volumes=volumes))
    assert scheduled(room, "first") == "pretend-b"
    room.apply(
        pod("second", volumes=volumes), pod("elsewhere", nodeSelector={ZONE_LABEL: "zone-a"}, volumes=volumes)
    )
    assert scheduled(room, "second") == "pretend-b"
    room("wait", "pod/elsewhere", "--for=condition=PodScheduled=False", "--timeout=30s")
