"""Projection of a node: the facts that sizing and placement read, without those that a heartbeat changes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

HOSTNAME = "kubernetes.io/hostname"
ZONE_KEYS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
INSTANCE_TYPE_KEYS = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
HAMI_REGISTER = "hami.io/node-nvidia-register"
"""Annotation in which HAMi's device plugin lists the GPUs of a node."""

KEPT_LABELS = frozenset(
    [
        HOSTNAME,
        *ZONE_KEYS,
        *INSTANCE_TYPE_KEYS,
        "topology.kubernetes.io/region",
        "kubernetes.io/arch",
        "kubernetes.io/os",
    ]
)
"""Labels that are kept of every node."""
_CHANGING = frozenset(["nvidia.com/gfd.timestamp"])
_IP_TYPES = frozenset(["InternalIP", "ExternalIP"])
_BASIC_RESOURCES = frozenset(["cpu", "memory", "ephemeral-storage"])
_GPU_NAME = re.compile(r"gpu|accelerator|^(nvidia|amd)\.com/|\.(nvidia|amd)\.com/", re.IGNORECASE)


@dataclass(frozen=True)
class NodeRecord:
    """A node. `taints` hold key, value and effect; `allocatable` holds quantities as the API server writes them.

    A node without any sign of a GPU keeps only its topology labels, so that the nodes of a large cluster take little
    memory. A node selector matters only on nodes with a GPU.
    """

    name: str
    uid: str
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    allocatable: Mapping[str, str]
    unschedulable: bool
    ready: bool
    addresses: tuple[str, ...] = ()
    """The node's own IP addresses."""
    pod_networks: tuple[str, ...] = ()
    """Networks in CIDR notation from which Kubernetes lets the node give addresses to pods; empty with many CNIs."""

    def same_as(self, other: NodeRecord) -> bool:
        """Return whether only the resource version differs, as after a heartbeat."""
        return self == replace(other, resource_version=self.resource_version)

    @property
    def zone(self) -> str | None:
        """The zone of the node's labels, None if it has none."""
        return next((self.labels[key] for key in ZONE_KEYS if self.labels.get(key)), None)


def project_node(body: Mapping[str, Any]) -> NodeRecord:
    """Project a v1 Node. Raises KeyError if `metadata` lacks name, uid or resourceVersion."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    allocatable = status.get("allocatable") or {}
    extended = [name for name in allocatable if "/" in name]
    with_gpu = any(map(_names_gpu, (*extended, *labels))) or HAMI_REGISTER in annotations
    return NodeRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        labels=_shared(
            {
                key: value
                for key, value in labels.items()
                if key in KEPT_LABELS or ((with_gpu or extended) and key not in _CHANGING)
            }
        ),
        annotations={key: value for key, value in annotations.items() if key == HAMI_REGISTER},
        taints=tuple(
            _shared({key: taint[key] for key in ("key", "value", "effect") if taint.get(key)})
            for taint in spec.get("taints") or ()
        ),
        allocatable=_shared(
            {
                name: str(amount)
                for name, amount in allocatable.items()
                if name in _BASIC_RESOURCES or "/" in name
            }
        ),
        unschedulable=bool(spec.get("unschedulable")),
        ready=any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for condition in status.get("conditions") or ()
        ),
        addresses=tuple(
            str(entry["address"])
            for entry in status.get("addresses") or ()
            if entry.get("type") in _IP_TYPES and entry.get("address")
        ),
        pod_networks=tuple(map(str, spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")]))),
    )


@lru_cache(maxsize=4096)
def _names_gpu(name: str) -> bool:
    """Return whether a resource or label is about GPUs; nodes share these names."""
    return _GPU_NAME.search(name) is not None


def _shared(strings: Mapping[str, str]) -> dict[str, str]:
    """Intern keys and values: thousands of nodes share nearly all of them."""
    return {sys.intern(str(key)): sys.intern(str(value)) for key, value in strings.items()}
