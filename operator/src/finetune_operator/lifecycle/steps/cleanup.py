"""Deletes the Jobs of earlier attempts, and the workspace after the job has ended."""

from __future__ import annotations

from finetune_operator.api.spec import Lifecycle
from finetune_operator.lifecycle.actions import DeleteClaim, DeleteJob, DeletePod
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace


def delete_finished_jobs(state: Reconciliation) -> Reconciliation:
    """Delete every Job but the current attempt's. Jobs of recorded attempts stay for the configured time."""
    lifecycle = state.spec.lifecycle if state.spec is not None else Lifecycle()
    current = None if state.draft.finished else state.current_child
    for child in state.own_children:
        if child.deleting or child == current:
            continue
        expiry = child_expiry(state.draft.find_attempt(child.stage, child.attempt), lifecycle, state.now)
        if expiry > state.now:
            state = state.with_requeue(expiry)
            continue
        idle_pods = (
            DeletePod(pod.name, pod.uid)
            for pod in state.pods_of(child)
            if (pod.end is not None and pod.idle) or not pod.node
        )
        state = state.with_actions(DeleteJob(child.name, child.uid), *idle_pods)
    return state


def delete_workspace(state: Reconciliation) -> Reconciliation:
    """Delete the workspace of a job that has ended, unless its policy keeps it.

    Without a readable spec the policy is unknown, so the workspace stays.
    """
    spec, claim = state.spec, state.own_claim
    if not state.draft.finished or spec is None or claim is None or claim.deleting:
        return state
    if keeps_workspace(spec.lifecycle, succeeded=state.draft.succeeded):
        return state
    return state.with_actions(DeleteClaim(claim.name, claim.uid))
