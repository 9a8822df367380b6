"""Stops the current stage of a job that the user has suspended, or that nothing in the cluster suits."""

from __future__ import annotations

from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.sizing import Blocked


def suspend_job(state: Reconciliation) -> Reconciliation:
    """Suspend the job and its current Job if `spec.suspend` is true."""
    spec = state.active_spec
    if spec is None or not spec.suspend:
        return state
    return state.with_draft(state.draft.suspend()).with_child_suspended()


def stall_job(state: Reconciliation) -> Reconciliation:
    """Stall the job and suspend its current Job if no GPU or volume of the cluster suits it."""
    spec, feasibility = state.active_spec, state.feasibility
    if spec is None or spec.suspend or not isinstance(feasibility, Blocked):
        return state
    draft = state.draft.stall(feasibility.reason, feasibility.message)
    return state.with_draft(draft).with_child_suspended()
