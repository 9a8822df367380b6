"""Creates the workspace's claim if PREPARE's Job exists without it."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.reasons import Reason
from finetune_operator.lifecycle import volumes as volume_policy
from finetune_operator.lifecycle.reconciliation import Reconciliation

PREVIOUS_CLAIM = timedelta(seconds=1)
"""Time between two looks at the claim of an earlier FineTuneJob of the same name, until it is gone."""


def supply_claim(state: Reconciliation) -> Reconciliation:
    """Create a claim for which PREPARE's pod waits.

    Somebody may have deleted it, which costs nothing before the pod has a node.

    If the API server refuses it, the Job goes at once: another object may have the name of the claim, and the pod would
    run in that. The Job of the next attempt is created after the claim.
    """
    spec = state.runnable_spec
    if spec is None or not state.lacks_claim:
        return state
    if state.observation.previous_claim is not None:
        return state.with_requeue(state.now + PREVIOUS_CLAIM)
    rejection = state.observation.rejection
    if rejection is not None and rejection.final:
        return state.with_draft(state.draft.fail(Reason.INVALID_SPEC, rejection.message))
    if rejection is not None:
        return state.with_attempt_left(Reason.CHILD_REFUSED, rejection.message)
    return state.with_actions(
        volume_policy.create_claim(state.job, spec, state.draft, state.settings, state.observation.inventory)
    )
