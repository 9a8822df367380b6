"""Holds back the actions that the API server has refused until they are tried again."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.reasons import Reason
from finetune_operator.lifecycle.actions import CreateJob, ExpandClaim
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.refusals import action_key, split_refused


def hold_refused_actions(state: Reconciliation) -> Reconciliation:
    """Keep only the actions that may be tried now. Those that do not depend on a refused one are never held back."""
    refusals = state.observation.refusals
    if not refusals:
        return state
    tried, held = split_refused(state.actions, refusals, state.now)
    waiting = [refusals[key] for action in held if (key := action_key(action)) in refusals]
    for refusal in waiting:
        state = state.with_requeue(refusal.retry_time)
    starts = any(isinstance(action, CreateJob) for action in state.actions)
    expansions = [action_key(action) for action in state.actions if isinstance(action, ExpandClaim)]
    refused = [refusals[key].message for key in expansions if key in refusals]
    if starts and refused:
        # This stays until a try succeeds, so that the status does not flip with every try.
        state = state.progressing(Reason.CHILD_REFUSED, refused[0])
    return replace(state, actions=tried, held_actions=held)
