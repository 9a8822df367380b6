"""Recognizes pods that nobody will end, because their node is gone, and pods whose end a node does not confirm."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.observation import Pod

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Taint with which an administrator says that a node is shut down. Kubernetes then detaches its volumes."""
CONFIRMATION = timedelta(seconds=30)
"""Time after a pod's grace period in which a healthy kubelet confirms its end."""


def lost_node(pod: Pod, inventory: Inventory) -> str | None:
    """Why no kubelet will ever end this pod, which is being deleted; None if one may.

    Only then may a pod be removed by force. On a node that merely does not answer, its trainer may still write to the
    workspace. Nodes that are unknown to the operator count as present.
    """
    if not pod.deleting or not pod.live or not pod.node or inventory.problem is not None:
        return None
    node = inventory.nodes.get(pod.node)
    if node is None:
        return f"pod {pod.name} was on node {pod.node}, which does not exist any more"
    if any(taint.get("key") == OUT_OF_SERVICE for taint in node.taints):
        return f"pod {pod.name} was on node {pod.node}, which is out of service"
    return None


def confirmation_time(pods: Iterable[Pod]) -> datetime | None:
    """The time until which the ends of all `pods` that are being deleted must be confirmed; None without such a pod."""
    times = [
        pod.deletion_time + CONFIRMATION
        for pod in pods
        if pod.deleting and pod.live and pod.node and pod.deletion_time is not None
    ]
    return min(times, default=None)


def unconfirmed_end(pods: Iterable[Pod], inventory: Inventory, now: datetime) -> str | None:
    """What to do about the first pod whose node does not confirm its end in time; None if there is none."""
    for pod in sorted(pods, key=lambda each: (each.created, each.name)):
        due = confirmation_time([pod])
        if due is None or now < due or lost_node(pod, inventory) is not None:
            continue
        node = inventory.nodes.get(pod.node)
        state = "unknown" if node is None else "ready" if node.ready else "not ready"
        return (
            f"pod {pod.name} is being deleted, but its node {pod.node}, which is {state}, does not confirm its end; if the "
            f"node is shut down, give it the taint {OUT_OF_SERVICE} or delete it, and the stage starts elsewhere"
        )
    return None
