"""Takes a GPU back from a pod that has it but does not start."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.reasons import OPERATOR_CLASSES, Reason
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retry import delay_after, next_attempt
from finetune_operator.observed.observation import Pod
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.observed.pending import is_stuck, why_not_started

MAXIMUM_DOUBLINGS = 4


def reclaim_gpu(state: Reconciliation) -> Reconciliation | Need:
    """End an attempt of TRAIN whose pod has had a node for too long without running, and try again later.

    A missing image, Secret or volume can keep a GPU for days. The attempt costs no retry. Without a known cause, the
    pod may be pulling a large image, so each attempt that ended so doubles the time of the next one.
    """
    pod = _starting_pod(state)
    if pod is None:
        return state
    limit = _limit(state, pod)
    end = (pod.scheduled or pod.created) + limit
    if state.now < end:
        return state.with_requeue(end)
    if not state.observation.fresh:
        # The watch may lag behind a pod that runs.
        return Need.FRESH_CHILDREN
    if not state.observation.warnings_read:
        return Need.POD_WARNINGS
    cause = why_not_started(pod, state.observation.warnings.get(pod.uid, ""))
    message = f"pod {pod.name} had a GPU of node {pod.node} for {limit.total_seconds():.0f} s, but did not start: {cause}"
    # Without a node: nothing has run there, so the plan is not bound to a checkpoint.
    kind = OPERATOR_CLASSES[Reason.POD_STUCK]
    draft = state.draft.record_attempt(
        AttemptOutcome("Interrupted", kind, Reason.POD_STUCK, message[:1024], finished=state.now)
    )
    delay = delay_after(
        kind, failures=0, interruptions=0, retries=0, ran=timedelta(), waits=draft.stuck_starts
    )
    following = next_attempt(draft.attempt, kind)
    if delay is None or following is None:
        return state
    return state.with_draft(draft.begin_attempt(following, state.now + delay))


def _starting_pod(state: Reconciliation) -> Pod | None:
    """The newest pod of TRAIN, if it has a node and should start there; None otherwise."""
    spec, child = state.active_spec, state.current_child
    if spec is None or spec.suspend or child is None or child.stage is not Stage.TRAIN:
        return None
    if child.suspended or child.deleting or child.finished:
        return None
    newest = max(state.pods_of(child), key=lambda pod: pod.created, default=None)
    return newest if newest is not None and newest.starting else None


def _limit(state: Reconciliation, pod: Pod) -> timedelta:
    known = is_stuck(pod) or pod.uid in state.observation.warnings
    doublings = 0 if known else min(state.draft.stuck_starts, MAXIMUM_DOUBLINGS)
    return timedelta(seconds=state.settings.start_seconds << doublings)
