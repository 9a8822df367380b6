"""Applies the outcome of the current attempt: the next stage, a retry, or the end of the job."""

from __future__ import annotations

from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.advance import apply_success
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retry import delay_after, next_attempt
from finetune_operator.lifecycle.stage_jobs import size_host
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.sizing.hosts import may_retry_with_more, out_of_memory_message

_UNSEEN = frozenset({Reason.STAGE_LOST, Reason.DISRUPTED, Reason.NO_PROGRESS})
"""Outcomes without a result."""


def end_attempt(state: Reconciliation) -> Reconciliation | Need:
    """Record the outcome of an attempt that has ended, and decide what follows.

    Some outcomes need a fresh read first: the watch may lag behind a pod that has succeeded.
    """
    spec = state.active_spec
    outcome = None if spec is None else state.outcome(spec)
    if spec is None or outcome is None:
        return state
    if outcome.reason in _UNSEEN and not state.observation.fresh:
        return Need.FRESH_CHILDREN
    state = state.with_draft(state.draft.record_attempt(outcome))
    child = state.current_child
    if (
        outcome.result is not None
        and state.draft.stage is Stage.PREPARE
        and child is not None
        and child.image
    ):
        # Also of a failed one: the commands that read its log and its report run this image.
        state = state.with_draft(state.draft.record_trainer(outcome.result.version, child.image))
    if outcome.outcome == "Succeeded" and outcome.result is not None:
        return state.with_draft(apply_success(state.draft, outcome.result))
    return _retry_or_fail(state, spec, outcome)


def _retry_or_fail(state: Reconciliation, spec: FineTuneJobSpec, outcome: AttemptOutcome) -> Reconciliation:
    draft = state.draft
    killed = outcome.reason == Reason.HOST_OUT_OF_MEMORY
    delay = delay_after(
        outcome.kind,
        failures=draft.count_attempts(draft.stage, "Failed") - draft.destination_failures,
        interruptions=draft.interruptions,
        retries=spec.lifecycle.retries,
        ran=draft.attempt_duration,
        waits=draft.destination_failures,
        may_grow=killed and may_retry_with_more(spec, draft.stage, draft.out_of_memory_kills),
    )
    following = next_attempt(draft.attempt, outcome.kind)
    if delay is not None and following is not None:
        return state.with_draft(draft.begin_attempt(following, state.now + delay))
    message = outcome.message
    if killed:
        had = size_host(spec, draft, state.settings, draft.out_of_memory_kills - 1)
        message = f"{message}. {out_of_memory_message(spec, draft.stage, had)}"
    log_tail = outcome.result.log_tail if outcome.result is not None else ()
    return state.with_draft(draft.fail(outcome.reason, message, log_tail))
