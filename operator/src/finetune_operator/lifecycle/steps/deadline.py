"""The job's deadline: it ends the job, and it is paused while the job waits for a GPU."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.status.draft import StatusDraft


def enforce_deadline(state: Reconciliation) -> Reconciliation:
    """Fail a job whose deadline has passed. An attempt that ended before this was noticed still counts."""
    spec = state.active_spec
    deadline = _deadline(state.draft, spec)
    if spec is None or deadline is None or state.now < deadline or state.outcome(spec) is not None:
        return state
    message = (
        f"the job must end within {spec.lifecycle.deadline_seconds} s after its start, but it has not ended; "
        "raise lifecycle.deadlineSeconds and create it again"
    )
    if state.draft.awaits_destination:
        message += f"; it waited for its destination: {(state.draft.last_attempt or {}).get('message', '')}"
    return state.with_draft(state.draft.fail(Reason.DEADLINE_EXCEEDED, message))


def await_deadline(state: Reconciliation) -> Reconciliation:
    """Ask for another decision at the deadline, unless it is paused."""
    deadline = _deadline(state.draft, state.active_spec)
    if deadline is None or state.draft.waiting_since is not None:
        return state
    return state.with_requeue(deadline)


def _deadline(draft: StatusDraft, spec: FineTuneJobSpec | None) -> datetime | None:
    """The time at which the job must have ended, extended by its waits for a GPU; None if there is no deadline."""
    if spec is None or spec.suspend or spec.lifecycle.deadline_seconds is None or draft.start_time is None:
        return None
    return draft.start_time + timedelta(seconds=spec.lifecycle.deadline_seconds) + draft.waited
