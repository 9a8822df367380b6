"""Taints that describe the state of a node, not its purpose: they go by themselves, or the node does.

A start-up taint keeps pods away until a driver, a network or a registration is complete. A job waits for such a node,
as for one that is not ready.
"""

from __future__ import annotations

import re

_CORDONED = frozenset(
    [
        "node.kubernetes.io/unschedulable",
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
    ]
)
_STARTING = frozenset(["nodewright.nvidia.com", "skyhook.nvidia.com"])
# Kubernetes' own states; the Cluster Autoscaler's prefixes for start-up and state taints; readiness controllers.
_STARTING_PREFIXES = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    "status-taint.cluster-autoscaler.kubernetes.io/",
    "readiness.k8s.io/",
    "nidhogg.uswitch.com/",
)
# Names such as karpenter.sh/unregistered, node.cilium.io/agent-not-ready, node.cluster.x-k8s.io/uninitialized.
_STARTING_NAME = re.compile(
    r"(^|[-._/])(not-?ready|unready|uninitiali[sz]ed|unregistered|initiali[sz]ing|provisioning|starting|start-?up"
    r"|bootstrapping|runtime-required|(driver|plugin|agent)-(missing|pending|installing|upgrading|upgrade))$",
    re.IGNORECASE,
)


def is_cordoned(key: str) -> bool:
    """Return whether a taint with this key means that the node takes no new pods, or goes away."""
    return key in _CORDONED


def is_starting(key: str) -> bool:
    """Return whether a taint with this key goes by itself once the node has started or has recovered."""
    return (
        key in _STARTING or key.startswith(_STARTING_PREFIXES) or _STARTING_NAME.search(key) is not None
    ) and not is_cordoned(key)
