"""Takes a Job out of its queue, because nobody but the queue may suspend it."""

from __future__ import annotations

from finetune_operator.api.reasons import Reason
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.sizing import Blocked


def leave_queue(state: Reconciliation) -> Reconciliation | Need:
    """Give up the current Job if it has a queue and must not run: the user suspends it, or nothing suits it.

    Kueue resumes a Job that it has admitted, whoever suspends it. So the Job is deleted, and the next attempt queues
    again when it may run. A trainer that runs gets its time to save a checkpoint. The fresh read shows a pod that has just
    succeeded, and the node of one that has just started.
    """
    spec, child = state.active_spec, state.current_child
    if spec is None or child is None or not child.queue or child.deleting or child.finished:
        return state
    if spec.suspend:
        reason, cause = Reason.SUSPENDED_BY_USER, "spec.suspend is true"
    elif isinstance(state.feasibility, Blocked):
        reason, cause = state.feasibility.reason, state.feasibility.message
    else:
        return state
    if not state.observation.fresh:
        return Need.FRESH_CHILDREN
    return state.with_attempt_left(reason, f"Job {child.name} left the LocalQueue {child.queue}: {cause}")
