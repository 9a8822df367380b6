"""Reads what the watch does not show: objects whose label somebody has removed."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.reconciliation import Reconciliation

REREAD = timedelta(seconds=10)
"""Time between two reads of an object that no watch shows."""
MISSING_POD_REREAD = timedelta(seconds=30)
"""Time between two reads while the pod of a Job that had one is missing. The Job controller may replace it late."""


def reread_unwatched(state: Reconciliation) -> Reconciliation | Need:
    """Ask for a fresh read, now and then, while an object is hidden from the watch or a pod has disappeared from it.

    The watch selects a label that anybody may remove. An object without it still runs, and it is still the job's.
    """
    observed = state.observation
    claims = [claim for claim in (observed.claim, observed.previous_claim) if claim is not None]
    watched = [
        *(child.watched for child in observed.children),
        *(pod.watched for pod in observed.pods),
        *(claim.watched for claim in claims),
    ]
    if not all(watched):
        interval = REREAD
    elif _misses_a_pod(state):
        interval = MISSING_POD_REREAD
    else:
        return state
    if observed.fresh:
        return state.with_requeue(state.now + interval)
    if observed.last_read is None or not observed.last_read <= state.now < observed.last_read + interval:
        # A time in the future is that of a clock that has been set back since.
        return Need.FRESH_CHILDREN
    return state.with_requeue(observed.last_read + interval)


def _misses_a_pod(state: Reconciliation) -> bool:
    """True if the current Job had a pod on a node, and the watch shows none."""
    child = state.current_child
    if state.draft.finished or child is None or child.suspended or child.deleting or child.finished:
        return False
    return state.draft.node_seen and not state.pods_of(child)
