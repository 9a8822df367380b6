"""Nodes as their labelers write them, for the tests of the GPU inventory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.pod_merge import NodeRules, SelectedLabel
from finetune_operator.sizing.gpus.nodes import NodeRecord, project_node

GIB = 2**30
MIB = 2**20


def body(
    name: str,
    labels: Mapping[str, str] | None = None,
    allocatable: Mapping[str, str] | None = None,
    *,
    taints: Sequence[Mapping[str, str]] = (),
    annotations: Mapping[str, str] | None = None,
    unschedulable: bool = False,
    ready: bool = True,
) -> dict[str, Any]:
    """A v1 Node."""
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})},
            "annotations": dict(annotations or {}),
        },
        "spec": {
            "taints": [dict(taint) for taint in taints],
            **({"unschedulable": True} if unschedulable else {}),
        },
        "status": {
            "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110", **(allocatable or {})},
            "conditions": [
                {"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
                {
                    "type": "Ready",
                    "status": "True" if ready else "Unknown",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                },
            ],
        },
    }


def node(
    name: str,
    labels: Mapping[str, str] | None = None,
    allocatable: Mapping[str, str] | None = None,
    **others: Any,
) -> NodeRecord:
    """The projection of a v1 Node."""
    return project_node(body(name, labels, allocatable, **others))


def gfd(product: str, memory: int, **others: str) -> dict[str, str]:
    """Labels of NVIDIA GPU feature discovery; `others` have `_` for `.` and lack the domain."""
    return {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        **{f"nvidia.com/{key.replace('_', '.')}": value for key, value in others.items()},
    }


def nvidia(name: str, product: str, memory: int, count: int = 1, **others: Any) -> NodeRecord:
    """A node with whole NVIDIA GPUs as feature discovery labels it."""
    labels = {**gfd(product, memory), **others.pop("labels", {})}
    return node(name, labels, {"nvidia.com/gpu": str(count)}, **others)


def selecting(labels: dict[str, str]) -> NodeRules:
    """The rules of a pod with this node selector."""
    field = "resources.nodeSelector"
    return NodeRules(labels=tuple(SelectedLabel(key, value, field) for key, value in labels.items()))
