"""Queues of Kueue for the cluster tests, and plain Jobs that compete for their quota."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.kueue import API, KUEUE

PRODUCT_LABEL = "nvidia.com/gpu.product"
GPU_QUEUE, CPU_QUEUE = "gpus", "cpus"
URGENT = "urgent"
PRIORITY_CLASS: dict[str, Any] = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "research"},
    "value": 500,
}
_OTHER_PRODUCT = "NVIDIA-H100-80GB-HBM3"
"""A product that no node has, so that no affinity of TRAIN names it."""
_PLENTY = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti"}


def _flavor(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "ResourceFlavor",
        "metadata": {"name": name},
        "spec": {"nodeLabels": labels},
    }


def _quotas(flavor: str, quotas: dict[str, str]) -> dict[str, Any]:
    return {
        "name": flavor,
        "resources": [{"name": name, "nominalQuota": amount} for name, amount in quotas.items()],
    }


def _cluster_queue(name: str, resources: list[str], flavors: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "ClusterQueue",
        "metadata": {"name": name},
        "spec": {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": resources, "flavors": flavors}],
        },
    }


def cluster_objects() -> list[dict[str, Any]]:
    """One GPU of quota for each of two products, the one that no node has first, and plenty of CPUs."""
    one_gpu = {**_PLENTY, RESOURCE: "1"}
    return [
        _flavor("absent", {PRODUCT_LABEL: _OTHER_PRODUCT}),
        _flavor("present", {PRODUCT_LABEL: Gpus().product}),
        _flavor("any", {}),
        _cluster_queue(GPU_QUEUE, [*one_gpu], [_quotas("absent", one_gpu), _quotas("present", one_gpu)]),
        _cluster_queue(CPU_QUEUE, [*_PLENTY], [_quotas("any", _PLENTY)]),
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": URGENT}, "value": 1000},
    ]


def local_queue(name: str, cluster_queue: str) -> dict[str, Any]:
    """A LocalQueue of a namespace."""
    return {
        "apiVersion": API,
        "kind": "LocalQueue",
        "metadata": {"name": name},
        "spec": {"clusterQueue": cluster_queue},
    }


def local_queues() -> list[dict[str, Any]]:
    """The LocalQueues of a namespace, named like their ClusterQueues."""
    return [local_queue(name, name) for name in (GPU_QUEUE, CPU_QUEUE)]


@contextmanager
def running_queues(kubectl: Kubectl, workplace: Kubectl, image: str) -> Iterator[None]:
    """Run Kueue with queues in the namespace of `workplace`, whose Jobs are deleted at the end. `image` is any thin image."""
    with KUEUE.running(kubectl, image):
        kubectl.apply(*cluster_objects(), PRIORITY_CLASS)
        workplace.apply(*local_queues())
        try:
            yield
        finally:
            workplace("delete", "finetunejobs,jobs", "--all", "--wait=true")
            workplace("delete", "localqueues", "--all", "--wait=true")
            kubectl("delete", "clusterqueues,resourceflavors,workloadpriorityclasses", "--all", "--wait=true")
            kubectl("delete", "priorityclass", PRIORITY_CLASS["metadata"]["name"])


@contextmanager
def quota(kubectl: Kubectl, gpus: int) -> Iterator[None]:
    """Let the queue have so many of the GPUs that the node has, and one again at the end."""
    _give_quota(kubectl, gpus)
    try:
        yield
    finally:
        _give_quota(kubectl, 1)


def _give_quota(kubectl: Kubectl, gpus: int) -> None:
    queue = kubectl.json("get", "clusterqueue", GPU_QUEUE)
    (resource,) = [
        resource
        for flavor in queue["spec"]["resourceGroups"][0]["flavors"]
        for resource in flavor["resources"]
        if flavor["name"] == "present" and resource["name"] == RESOURCE
    ]
    resource["nominalQuota"] = str(gpus)
    patch = json.dumps({"spec": {"resourceGroups": queue["spec"]["resourceGroups"]}})
    kubectl("patch", "clusterqueue", GPU_QUEUE, "--type=merge", f"--patch={patch}")


def occupy(kubectl: Kubectl, image: str, name: str, *, urgent: bool = False) -> str:
    """Run a plain Job that takes one GPU of quota. Return its name."""
    kubectl.apply(plain_job(name, image, urgent=urgent))
    wait_for(f"a pod of {name}", seconds=60, holds=lambda: is_running(kubectl, name))
    return name


def leave(kubectl: Kubectl, name: str) -> None:
    """Delete a plain Job, so that its quota is free."""
    kubectl("delete", "job", name, "--wait=true")


def train_waits(job: dict[str, Any]) -> bool:
    """True if TRAIN waits for quota."""
    found = product.condition(job, "Suspended")
    waits = (found["status"], found["reason"]) == ("True", "QuotaPending")
    return waits and job["status"]["stage"]["name"] == "Train"


def plain_job(name: str, image: str, *, urgent: bool = False) -> dict[str, Any]:
    """A Job that sleeps with one GPU of the product that the node has."""
    labels = {"kueue.x-k8s.io/queue-name": GPU_QUEUE}
    if urgent:
        labels["kueue.x-k8s.io/priority-class"] = URGENT
    requests = {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "1Mi", RESOURCE: "1"}
    container = {
        "name": "sleep",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"requests": requests, "limits": {RESOURCE: "1"}},
        "securityContext": product.RESTRICTED_CONTAINER,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": product.RESTRICTED_POD,
        "nodeSelector": {PRODUCT_LABEL: Gpus().product},
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


def is_running(kubectl: Kubectl, job: str) -> bool:
    """True if a pod of this Job runs."""
    pods = kubectl.json("get", "pods", f"--selector=job-name={job}")["items"]
    return any(pod["status"]["phase"] == "Running" for pod in pods)


def workloads(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """What Kueue knows of the Jobs in this namespace, by their names."""
    items = kubectl.json("get", "workloads")["items"]
    return {workload["metadata"]["ownerReferences"][0]["name"]: workload for workload in items}


def assigned_flavors(kubectl: Kubectl, job: str) -> dict[str, str]:
    """The flavor of each resource that Kueue has assigned to this Job; empty if it has not admitted it."""
    status = workloads(kubectl).get(job, {}).get("status", {})
    assignments = (status.get("admission") or {}).get("podSetAssignments") or [{}]
    return dict(assignments[0].get("flavors") or {})


def queued_jobs(kubectl: Kubectl) -> list[str]:
    """The names of the Jobs that Kueue knows in this namespace."""
    return list(workloads(kubectl))


def wait_for(what: str, *, seconds: float, holds: Callable[[], bool]) -> None:
    """Wait until `holds` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} must be seen within {seconds:.0f} s, but it was not")
        time.sleep(0.3)
