"""Pretend nodes: Node objects without a kubelet, to which the real scheduler still binds pods.

A pod that is bound to one stays Pending, which is enough to check its placement. During a `with` block this module
does the minimum of a kubelet's work. It renews the node's Lease, because the node would be tainted as unreachable
otherwise. It also removes pods that are marked for deletion.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from devcluster.gpus import PRETEND_LABEL, RESOURCE, Gpus

ZONE_LABEL = "topology.kubernetes.io/zone"
GPU_TAINT = {"key": RESOURCE, "value": "present", "effect": "NoSchedule"}
"""Taint that clouds put on nodes with GPUs to keep other pods off."""

_LEASE_NAMESPACE = "kube-node-lease"
_LEASE_SECONDS = 40
_ROUND_SECONDS = 0.5
_ROUNDS_PER_RENEWAL = 20
_CONDITIONS = {"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"}
_SIZE = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi", "pods": "110"}
_NOT_FOUND = 404
# Status that the control plane's garbage collector gives to the pods of a removed node.
_DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByPodGC",
    "message": "node is gone",
}


@dataclass(frozen=True)
class PretendNode:
    """A node at its registration; `resources` are offered in addition to CPUs, memory and disk."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    zone: str | None = None
    taints: tuple[Mapping[str, str], ...] = ()
    cordoned: bool = False

    def body(self) -> dict[str, Any]:
        """Return the Node object, ready from its creation."""
        zone = {} if self.zone is None else {ZONE_LABEL: self.zone}
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            PRETEND_LABEL: "true",
        }
        now = _now()
        conditions = [
            {
                "type": kind,
                "status": status,
                "reason": "Pretended",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
            for kind, status in _CONDITIONS.items()
        ]
        amounts = {**_SIZE, **self.resources}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {**labels, **zone, **self.labels}},
            "spec": {"taints": [dict(taint) for taint in self.taints], "unschedulable": self.cordoned},
            "status": {"capacity": amounts, "allocatable": amounts, "conditions": conditions},
        }


def gpu_node(name: str, gpus: Gpus, zone: str | None = None, *, cordoned: bool = False) -> PretendNode:
    """Return a tainted node with GPUs and the labels of GPU feature discovery."""
    return PretendNode(
        name, gpus.labels(), {RESOURCE: str(gpus.count)}, zone, taints=(GPU_TAINT,), cordoned=cordoned
    )


class PretendNodes:
    """The pretend nodes of one test; the end of the `with` block removes the remaining ones with their pods."""

    def __init__(self, kubeconfig: Path) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        # The published types require models, although plain objects work as well.
        self._core: Any = client.CoreV1Api(api)
        self._leases: Any = client.CoordinationV1Api(api)
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.set()
        self._thread.join()
        for name in sorted(self._names):
            self.remove(name)
        if self._error is not None:
            raise self._error

    def add(self, *nodes: PretendNode) -> None:
        """Add nodes; the scheduler uses them as soon as the node controller sees that they are ready."""
        for node in nodes:
            self._leases.create_namespaced_lease(_LEASE_NAMESPACE, _lease(node.name))
            with self._lock:
                self._names.add(node.name)
            self._core.create_node(node.body())

    def remove(self, name: str) -> None:
        """Remove a node and its pods at once; the control plane would need minutes."""
        with self._lock:
            self._names.discard(name)
        self._unless_gone(self._core.delete_node, name)
        self._unless_gone(self._leases.delete_namespaced_lease, name, _LEASE_NAMESPACE)
        for pod in self._pods_on({name}):
            self._take_away(pod, conditions=[_DISRUPTED])

    def pods_on(self, name: str) -> list[str]:
        """Return the names of the pods that are bound to a node."""
        return sorted(pod.metadata.name for pod in self._pods_on({name}))

    def _pods_on(self, names: set[str]) -> list[Any]:
        found = self._core.list_pod_for_all_namespaces(resource_version="0").items
        return [pod for pod in found if pod.spec.node_name in names]

    def _take_away(self, pod: Any, conditions: Sequence[Mapping[str, str]] = ()) -> None:
        """End a pod before its deletion, like kubelet and garbage collector: its Job waits for the end."""
        where = (pod.metadata.name, pod.metadata.namespace)
        ended = {"status": {"phase": "Failed", "conditions": list(conditions)}}
        self._unless_gone(self._core.patch_namespaced_pod_status, *where, ended)
        self._unless_gone(self._core.delete_namespaced_pod, *where, grace_period_seconds=0)

    @staticmethod
    def _unless_gone(call: Any, *arguments: Any, **options: Any) -> None:
        try:
            call(*arguments, **options)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise

    def _keep(self) -> None:
        """Do a kubelet's duties for the control plane until the end of the block, which raises any error."""
        rounds = 0
        while not self._leaving.wait(_ROUND_SECONDS):
            with self._lock:
                names = set(self._names)
            try:
                if names:
                    self._round(names, renew=rounds % _ROUNDS_PER_RENEWAL == 0)
            except Exception as error:  # noqa: BLE001 -- passed to the thread that leaves the block
                self._error = error
                return
            rounds += 1

    def _round(self, names: set[str], *, renew: bool) -> None:
        if renew:
            for name in names:
                self._renew(name)
        for pod in self._pods_on(names):
            if pod.metadata.deletion_timestamp is not None:
                self._take_away(pod)

    def _renew(self, name: str) -> None:
        try:
            self._leases.patch_namespaced_lease(name, _LEASE_NAMESPACE, _lease(name))
        except ApiException as error:
            with self._lock:
                gone = name not in self._names
            if not (error.status == _NOT_FOUND and gone):
                raise


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _lease(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": _LEASE_NAMESPACE},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": _now()},
    }
