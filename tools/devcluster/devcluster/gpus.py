"""Pretend GPUs: a node's resource and labels, as NVIDIA's device plugin and GPU feature discovery would set them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from devcluster.api import ApiClient
from devcluster.errors import DevClusterError
from devcluster.kubectl import Kubectl
from devcluster.layout import NODE_NAME

RESOURCE = "nvidia.com/gpu"
PRETEND_LABEL = "tests.finetune.dev/pretend-node"
"""On nodes without a kubelet."""
_MERGE_PATCH = "application/merge-patch+json"

# Architecture and compute capability by the model in the product name, as NVIDIA publishes them. `Pretend` is in no
# # table, so its memory is the value of the label.
_MODELS = {
    "PRETEND": ("ampere", 8, 6),
    "T4": ("turing", 7, 5),
    "A100": ("ampere", 8, 0),
    "A10G": ("ampere", 8, 6),
    "A10": ("ampere", 8, 6),
    "L4": ("ada-lovelace", 8, 9),
    "L40S": ("ada-lovelace", 8, 9),
    "H100": ("hopper", 9, 0),
    "H200": ("hopper", 9, 0),
    "B200": ("blackwell", 10, 0),
}

# Compute capabilities of the models above whose GPUs can be split into MIG instances.
_MIG_CAPABLE = {(8, 0), (9, 0), (10, 0)}


@dataclass(frozen=True)
class Gpus:
    """`count` equal GPUs of a node; `memory_mib` is one GPU's memory in MiB as `nvidia-smi` reports it."""

    product: str = "NVIDIA-L4"
    memory_mib: int = 23034
    count: int = 2

    def labels(self) -> dict[str, str]:
        """Return the labels of GPU feature discovery.

        Raises DevClusterError for a product with an unknown architecture.
        """
        models = [model for part in self.product.split("-") if (model := _MODELS.get(part.upper()))]
        if not models:
            raise DevClusterError(
                f"the GPU product must name one of {', '.join(sorted(_MODELS))} between dashes, found {self.product!r}; "
                "add its architecture to _MODELS in tools/devcluster/devcluster/gpus.py"
            )
        family, major, minor = models[0]
        values = {
            "gpu.present": "true",
            "gpu.product": self.product,
            "gpu.memory": str(self.memory_mib),
            "gpu.count": str(self.count),
            "gpu.replicas": "1",
            "gpu.family": family,
            "gpu.compute.major": str(major),
            "gpu.compute.minor": str(minor),
            "gpu.sharing-strategy": "none",
            "mig.capable": str((major, minor) in _MIG_CAPABLE).lower(),
            "mig.strategy": "single",
        }
        return {f"nvidia.com/{name}": value for name, value in values.items()}


def patches(gpus: Gpus) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return merge patches of a node and of its status that add `gpus`; a count of 0 removes everything.

    Raises DevClusterError for an unknown product.
    """
    labels: dict[str, str | None] = dict(gpus.labels())
    if not gpus.count:
        labels = dict.fromkeys(labels)
    amount = {RESOURCE: str(gpus.count) if gpus.count else None}
    return {"metadata": {"labels": labels}}, {"status": {"capacity": amount, "allocatable": amount}}


def set_gpus(client: ApiClient, gpus: Gpus, node: str = NODE_NAME) -> None:
    """Make `node` offer `gpus` instead of its present GPUs.

    The kubelet does not change an extended resource that no device plugin registered. Raises ApiError if the API server
    rejects the change, DevClusterError for an unknown product.
    """
    metadata, status = patches(gpus)
    client.request("PATCH", f"/api/v1/nodes/{node}", metadata, _MERGE_PATCH)
    client.request("PATCH", f"/api/v1/nodes/{node}/status", status, _MERGE_PATCH)


def first_node(kubectl: Kubectl) -> str:
    """Return the name of the cluster's first node with a kubelet."""
    name: str = kubectl.json("get", "nodes", f"--selector=!{PRETEND_LABEL}")["items"][0]["metadata"]["name"]
    return name


def set_gpus_by_kubectl(kubectl: Kubectl, gpus: Gpus, node: str | None = None) -> None:
    """Make `node` (default: the first real node) offer `gpus`, on any cluster, with its administrator's kubectl."""
    name = node or first_node(kubectl)
    metadata, status = patches(gpus)
    kubectl("patch", "node", name, "--type=merge", "--patch", json.dumps(metadata))
    kubectl("patch", "node", name, "--type=merge", "--subresource=status", "--patch", json.dumps(status))
