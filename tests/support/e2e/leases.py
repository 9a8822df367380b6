"""The Lease of the operator's replicas, and waiting for a change of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

LEASE = "finetune-operator"
"""The operator's default; the chart sets no other."""


def until(what: str, holds: Callable[[], bool], *, seconds: float) -> float:
    """Wait for `what`, and return how many seconds it took. Fails the test after `seconds`."""
    started = time.monotonic()
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} must be seen within {seconds:.0f} s")
        time.sleep(0.3)
    return time.monotonic() - started


def lease(kubectl: Kubectl) -> dict[str, Any]:
    """Return the spec of the Lease of the chart's replicas. Other tests run operators with Leases of their own."""
    found = kubectl.within(product.SYSTEM_NAMESPACE).json("get", "lease", LEASE)
    return dict(found["spec"])


def leads_one_of_two(kubectl: Kubectl) -> bool:
    """True as soon as no replica of an earlier release is left."""
    pods = kubectl.within(product.SYSTEM_NAMESPACE).json("get", "pods")["items"]
    names = {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    return len(pods) == 2 and lease(kubectl).get("holderIdentity") in names
