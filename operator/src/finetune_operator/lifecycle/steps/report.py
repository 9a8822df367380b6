"""Copies the report of a job that has ended to its destinations, if the job asks for it.

It is the only pod after the end, and the only one with credentials of destinations that runs for a failed job. Whatever
happens to it is a condition: the outcome of the job never changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from finetune_operator.api.conditions import Condition, Truth
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage
from finetune_operator.contract.bounded import clean_text
from finetune_operator.contract.reading import parse_result
from finetune_operator.errors import MalformedDocumentError
from finetune_operator.lifecycle.actions import CreateJob, Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.refusals import action_key
from finetune_operator.lifecycle.stage_jobs import build_report_job
from finetune_operator.lifecycle.volumes import place_merge
from finetune_operator.manifests.jobs import REPORT_SECONDS
from finetune_operator.observed.observation import ChildJob, Pod
from finetune_operator.status.condition_table import Entry

LOOK_AGAIN = timedelta(seconds=5)
"""Time between two looks at a pod that must end before the report is copied."""


def publish_report(state: Reconciliation) -> Reconciliation | Need:
    """Start the Job that copies the report, follow it, and record its outcome."""
    if not state.awaits_report:
        return state
    child = next((child for child in state.own_children if child.stage is Stage.REPORT), None)
    if child is not None:
        found = _outcome(state, child)
        if found is not None:
            return _concluded(state, *found)
    end = parse_time(state.draft.fields["completionTime"]) + timedelta(seconds=REPORT_SECONDS)
    if state.now >= end:
        return _concluded(state, Reason.REPORT_LOST, _why_late(state, child))
    state = state.with_requeue(end)
    if child is None:
        return _start(state)
    return _pending(state, f"Job {child.name} copies the report to the destinations")


def _start(state: Reconciliation) -> Reconciliation | Need:
    """Create the Job as soon as no other pod uses the workspace."""
    observation = state.observation
    if not _has_workspace(state):
        if not observation.fresh:
            return Need.FRESH_CHILDREN
        return _concluded(state, Reason.NO_REPORT, "the job ended without a workspace, so there is no report")
    running = sorted(pod.name for pod in observation.pods if pod.live)
    if running:
        state = _pending(state, f"waits for pod {running[0]} to end")
        return state.with_requeue(state.now + LOOK_AGAIN)
    return _create(state)


def _create(state: Reconciliation) -> Reconciliation | Need:
    spec, observation = state.spec, state.observation
    if spec is None:
        return state
    if observation.volumes is None:
        return Need.VOLUMES
    placement = place_merge(spec, observation.volumes, observation.inventory, state.settings.trainer.defaults)
    body = build_report_job(
        state.job, spec, state.draft, state.settings, placement, observation.volumes.read_only_claims
    )
    action = CreateJob(body)
    refusal = observation.refusals.get(action_key(action))
    if refusal is not None and refusal.final:
        return _concluded(state, Reason.REPORT_LOST, refusal.message)
    message = "its Job is created" if refusal is None else refusal.message
    return _pending(state, message).with_actions(action)


def _has_workspace(state: Reconciliation) -> bool:
    """True if there is a workspace, and a stage has begun that may have left something there."""
    begun = state.draft.job_seen or bool(state.draft.fields.get("attempts"))
    if state.spec is not None and state.spec.workspace.existing_claim is not None:
        return begun
    claim = state.own_claim
    return begun and claim is not None and not claim.deleting


def _outcome(state: Reconciliation, child: ChildJob) -> tuple[Reason | str, str] | None:
    """Reason and message of the Job that has ended; None while it may still succeed."""
    pods = sorted(state.pods_of(child), key=lambda pod: pod.created, reverse=True)
    ended = [pod for pod in pods if pod.end is not None and not pod.disrupted]
    if ended:
        return _result(state, child, ended[0])
    if child.finished or child.deleting:
        return Reason.REPORT_LOST, _without_result(child, pods)
    return None


def _result(state: Reconciliation, child: ChildJob, pod: Pod) -> tuple[Reason | str, str]:
    end = pod.end
    message = "" if end is None else end.message
    try:
        result = parse_result(message, uid=state.job.uid, stage=Stage.REPORT, attempt=child.attempt)
    except MalformedDocumentError as error:
        found = f"its result {error}" if message else "it left no result"
        return Reason.REPORT_LOST, f"pod {pod.name} copied no report: {found}"
    if result.outcome == "Succeeded":
        return Reason.REPORT_PUBLISHED, ""
    return result.reason or Reason.REPORT_LOST, result.message


def _without_result(child: ChildJob, pods: Iterable[Pod]) -> str:
    names = ", ".join(pod.name for pod in pods) or "none of its pods is left"
    return f"Job {child.name} ended without a result: {child.failure or names}"


def _why_late(state: Reconciliation, child: ChildJob | None) -> str:
    shown = state.draft.conditions.message(Condition.REPORT_PUBLISHED) if child is None else ""
    pods = () if child is None else state.pods_of(child)
    waiting = [pod.unschedulable or ": ".join(pod.waiting or ()) for pod in pods]
    otherwise = "its Job was never created" if child is None else "its pod did not end"
    cause = next(filter(None, [*waiting, shown]), otherwise)
    return (
        f"the report must be published {REPORT_SECONDS // 60} min after the end at the latest, found: {cause}"
    )


def _pending(state: Reconciliation, message: str) -> Reconciliation:
    return _with(state, Truth.UNKNOWN, Reason.PUBLISHING_REPORT, message)


def _concluded(state: Reconciliation, reason: Reason | str, message: str) -> Reconciliation:
    truth = Truth.TRUE if reason == Reason.REPORT_PUBLISHED else Truth.FALSE
    return _with(state, truth, reason, clean_text(message))


def _with(state: Reconciliation, truth: Truth, reason: Reason | str, message: str) -> Reconciliation:
    entry = Entry(Condition.REPORT_PUBLISHED, truth, reason, message)
    return state.with_draft(state.draft.with_conditions([entry]))
