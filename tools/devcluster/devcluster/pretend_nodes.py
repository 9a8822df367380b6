"""Pretend nodes: Node objects that no kubelet stands behind, to which the real scheduler binds pods all the same.

A pod that is bound to one stays Pending, which is enough to see where it lands. The little that the control plane needs
from a kubelet is done here, for as long as a `with` block lasts: the node's Lease is renewed, without which the node
would be tainted as unreachable, and pods that were told to go are taken away.
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
"""What clouds put on nodes with GPUs, so that other pods stay away."""

_LEASE_NAMESPACE = "kube-node-lease"
_LEASE_SECONDS = 40
_ROUND_SECONDS = 0.5
_ROUNDS_PER_RENEWAL = 20
_CONDITIONS = {"Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"}
_SIZE = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi", "pods": "110"}
_NOT_FOUND = 404
# What the control plane's garbage collector says of the pods of a node that has left.
_DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByPodGC",
    "message": "node is gone",
}


@dataclass(frozen=True)
class PretendNode:
    """A node as it registers: `resources` are what it offers beyond processors, memory and disk."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    zone: str | None = None
    taints: tuple[Mapping[str, str], ...] = ()
    cordoned: bool = False

    def body(self) -> dict[str, Any]:
        """The Node object, ready from its first moment."""
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
    """A tainted node with GPUs and the labels of GPU feature discovery."""
    return PretendNode(
        name, gpus.labels(), {RESOURCE: str(gpus.count)}, zone, taints=(GPU_TAINT,), cordoned=cordoned
    )


class PretendNodes:
    """The pretend nodes of one test; those that are left at the end of the `with` block are removed with their pods."""

    def __init__(self, kubeconfig: Path) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        # The published types want models where plain objects are taken as well.
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
        """Let nodes join; the scheduler uses them as soon as the node controller has seen that they are ready."""
        for node in nodes:
            self._leases.create_namespaced_lease(_LEASE_NAMESPACE, _lease(node.name))
            with self._lock:
                self._names.add(node.name)
            self._core.create_node(node.body())

    def remove(self, name: str) -> None:
        """Take a node away, and with it its pods, as the control plane would only after minutes."""
        with self._lock:
            self._names.discard(name)
        self._unless_gone(self._core.delete_node, name)
        self._unless_gone(self._leases.delete_namespaced_lease, name, _LEASE_NAMESPACE)
        for pod in self._pods_on({name}):
            self._take_away(pod, conditions=[_DISRUPTED])

    def pods_on(self, name: str) -> list[str]:
        """Names of the pods that are bound to a node."""
        return sorted(pod.metadata.name for pod in self._pods_on({name}))

    def _pods_on(self, names: set[str]) -> list[Any]:
        found = self._core.list_pod_for_all_namespaces(resource_version="0").items
        return [pod for pod in found if pod.spec.node_name in names]

    def _take_away(self, pod: Any, conditions: Sequence[Mapping[str, str]] = ()) -> None:
        """End a pod before it is deleted, as kubelet and garbage collector do: its Job waits for the end."""
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
        """What a kubelet owes the control plane, until the block is left; what goes wrong is raised at its end."""
        rounds = 0
        while not self._leaving.wait(_ROUND_SECONDS):
            with self._lock:
                names = set(self._names)
            try:
                if names:
                    self._round(names, renew=rounds % _ROUNDS_PER_RENEWAL == 0)
            except Exception as error:  # noqa: BLE001 -- handed over to the thread that leaves the block
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
