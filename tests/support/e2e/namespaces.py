"""Namespaces for a test or a module."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from devcluster.kubectl import Kubectl


@contextmanager
def fresh_namespace(kubectl: Kubectl) -> Iterator[str]:
    """Create a namespace with the restricted Pod Security level for the duration of a `with` block."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    # A pod that ignores SIGTERM would keep the namespace, and its GPU, for half a minute.
    kubectl.within(name)("delete", "pods", "--all", "--grace-period=1", "--wait=false")
    kubectl("delete", "namespace", name, "--wait=false")
