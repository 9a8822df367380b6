"""Takes GPUs back from pods that have them but do not start, or that wait for other pods of their Job."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.reasons import OPERATOR_CLASSES, Reason
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retry import delay_after, next_attempt
from finetune_operator.observed.observation import Pod
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.observed.pending import is_stuck, newest_pods, why_not_started, why_waiting

MAXIMUM_DOUBLINGS = 4


def reclaim_gpu(state: Reconciliation) -> Reconciliation | Need:
    """End an attempt of TRAIN that has had GPUs for too long without running, and try again later.

    It runs when all of its pods run. Several pods cannot train without each other, so they start together or not at all.

    A missing image, Secret or volume can keep a GPU for days. The attempt costs no retry. Without a known cause, the
    pod may be pulling a large image, so each attempt that ended so doubles the time of the next one.
    """
    pod = _starting_pod(state)
    if pod is None:
        return state
    limit = _limit(state, pod)
    end = _since(pod) + limit
    if state.now < end:
        return state.with_requeue(end)
    if not state.observation.fresh:
        # The watch may lag behind a pod that runs.
        return Need.FRESH_CHILDREN
    if not state.observation.warnings_read:
        return Need.POD_WARNINGS
    message = f"pod {pod.name} had a GPU of node {pod.node} for {limit.total_seconds():.0f} s, but {_cause(state, pod)}"
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
    """The pod of TRAIN that has a node and should start there, or that waits for pods without a node; None if none does."""
    spec, child = state.active_spec, state.current_child
    if spec is None or spec.suspend or child is None or child.stage is not Stage.TRAIN:
        return None
    if child.suspended or child.deleting or child.finished:
        return None
    newest = newest_pods(state.pods_of(child))
    starting = next((pod for pod in newest if pod.starting), None)
    if starting is not None or child.pods == 1 or not all(pod.live and not pod.deleting for pod in newest):
        return starting
    holding = [pod for pod in newest if pod.node]
    # The pods that run wait for those that have no GPU.
    return min(holding, key=_since) if 0 < len(holding) < child.pods else None


def _since(pod: Pod) -> datetime:
    return pod.scheduled or pod.created


def _cause(state: Reconciliation, pod: Pod) -> str:
    """Why the attempt does not run, although `pod` has a GPU."""
    child, warnings = state.current_child, state.observation.warnings
    if child is None or pod.starting:
        return f"did not start: {why_not_started(pod, warnings.get(pod.uid, ''))}"
    pods = newest_pods(state.pods_of(child))
    absent = [each for each in pods if not each.node]
    waiting = why_waiting(child, tuple(absent), warnings, state.now)
    why = "" if waiting is None else f": {waiting.message}"
    return f"only {len(pods) - len(absent)} of the {child.pods} pods of the run got GPUs{why}"


def _limit(state: Reconciliation, pod: Pod) -> timedelta:
    known = is_stuck(pod) or pod.uid in state.observation.warnings
    doublings = 0 if known else min(state.draft.stuck_starts, MAXIMUM_DOUBLINGS)
    return timedelta(seconds=state.settings.start_seconds << doublings)
