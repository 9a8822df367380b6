"""Fixtures of the tests that need a Kubernetes; which one it is, `devcluster.provider` decides."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
from devcluster.gpus import Gpus, set_gpus_by_kubectl
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster, provided_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[ProvidedCluster]:
    """The cluster of this test run: `kubeconfig`, `operator_image`, `trainer_image`."""
    with provided_cluster(f"test-{os.getpid()}") as provided:
        yield provided


@pytest.fixture(scope="session")
def kubectl(cluster: ProvidedCluster) -> Kubectl:
    """kubectl as the cluster's administrator."""
    return Kubectl(cluster.kubeconfig)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace that enforces the restricted Pod Security level, deleted at the end."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    # A pod that ignores SIGTERM would hold the namespace, and its GPU, for half a minute.
    kubectl.within(name)("delete", "pods", "--all", "--grace-period=1", "--wait=false")
    kubectl("delete", "namespace", name, "--timeout=120s")


@pytest.fixture
def gpus(kubectl: Kubectl) -> Iterator[Callable[[Gpus], None]]:
    """Sets the pretend GPUs of the cluster's first node; the default two come back at the end."""
    yield lambda wanted: set_gpus_by_kubectl(kubectl, wanted)
    set_gpus_by_kubectl(kubectl, Gpus())
