"""Decides when a job may start before its status is written."""

from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateClaim, CreateJob
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.status.record import StatusRecord


def needs_no_record(state: Reconciliation) -> bool:
    """True if the decision only makes the first Job of a new job, and its claim.

    Both have names that follow from the job, and the Job is the first attempt of PREPARE. So an operator that dies after
    any of these writes leaves objects from which the next one reads the same record. A later attempt or stage follows
    from results, which only the status holds. A refusal must be said before it is tried again.
    """
    if not any(isinstance(action, CreateJob) for action in state.actions):
        return False
    if not all(isinstance(action, (CreateClaim, CreateJob)) for action in state.actions):
        return False
    if state.observation.children or state.observation.rejection is not None or state.held_actions:
        return False
    stored = StatusRecord.read(state.job, state.now)
    recorded = stored.job_seen or stored.finished or stored.fields.get("attempts")
    first = (Stage.PREPARE, 0)
    return not recorded and (stored.stage, stored.attempt) == first == (
        state.draft.stage,
        state.draft.attempt,
    )
