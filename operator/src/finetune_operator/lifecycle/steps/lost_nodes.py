"""Removes the pods of lost nodes, so that their volumes and GPUs are free for the next attempt."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.lifecycle.actions import DeletePod, Need
from finetune_operator.lifecycle.deletion import made_by_operator
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.observed.lost_nodes import confirmation_time, lost_node

LOOK_AGAIN = timedelta(seconds=15)
"""Time between two looks at a node that does not confirm a pod's end. No event of a node wakes a job that has a GPU."""


def remove_lost_pods(state: Reconciliation) -> Reconciliation | Need:
    """Delete the operator's pods by force that hang because their node is gone or out of service, and no others.

    The fresh read before it includes these nodes: a node that has just joined must not seem to be gone.
    """
    observation = state.observation
    lost = [
        pod
        for pod in observation.pods
        if made_by_operator(pod, observation) and lost_node(pod, observation.inventory) is not None
    ]
    if lost and not observation.fresh:
        return Need.FRESH_CHILDREN
    for pod in lost:
        state = state.with_actions(DeletePod(pod.name, pod.uid, 0))
    due = confirmation_time(observation.pods)
    return state if due is None else state.with_requeue(max(due, state.now + LOOK_AGAIN))
