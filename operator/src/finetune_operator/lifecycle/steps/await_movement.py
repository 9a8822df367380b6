"""Asks for another decision when a trainer that stands still has used up its time."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.lifecycle.reconciliation import Reconciliation


def await_movement(state: Reconciliation) -> Reconciliation:
    """Ask for a decision at the limit, and after it as often as trainers are polled: only a poll can show a standstill."""
    spec, movement = state.active_spec, state.movement
    if spec is None or spec.suspend or spec.lifecycle.no_progress_seconds is None or movement is None:
        return state
    due = movement.since + timedelta(seconds=spec.lifecycle.no_progress_seconds)
    return state.with_requeue(max(due, state.now + timedelta(seconds=state.settings.progress_seconds)))
