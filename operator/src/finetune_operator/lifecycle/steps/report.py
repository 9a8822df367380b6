"""Copies the report of a job that has ended to its destinations if the job asks for it, and tells trackers of a failure.

It is the only pod after the end, and the only one with credentials of destinations that runs for a failed job. Whatever
happens to it is a condition: the outcome of the job never changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from finetune_operator.api.conditions import Condition, Truth
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage
from finetune_operator.contract.artifacts import TrackerRecord
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


@dataclass(frozen=True)
class _Outcome:
    """What the Job has done: for the destinations, and what the trackers have if it told them."""

    reason: Reason | str
    message: str
    told: tuple[TrackerRecord, ...] = ()


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
            return _concluded(state, found)
    end = parse_time(state.draft.fields["completionTime"]) + timedelta(seconds=REPORT_SECONDS)
    if state.now >= end:
        return _concluded(state, _lost(_why_late(state, child)))
    state = state.with_requeue(end)
    if child is None:
        return _start(state)
    return _pending(state, f"Job {child.name} sends the report")


def _start(state: Reconciliation) -> Reconciliation | Need:
    """Create the Job as soon as no other pod uses the workspace."""
    observation = state.observation
    if not _has_workspace(state):
        if not observation.fresh:
            return Need.FRESH_CHILDREN
        text = "the job ended without a workspace, so there is no report"
        return _concluded(state, _Outcome(Reason.NO_REPORT, text))
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
        state.job,
        spec,
        state.draft,
        state.settings,
        placement,
        observation.volumes.read_only_claims,
        copies=state.wants_copies,
        trackers=state.untold_trackers,
    )
    action = CreateJob(body)
    refusal = observation.refusals.get(action_key(action))
    if refusal is not None and refusal.final:
        return _concluded(state, _lost(refusal.message))
    message = "its Job is created" if refusal is None else refusal.message
    return _pending(state, message).with_actions(action)


def _has_workspace(state: Reconciliation) -> bool:
    """True if there is a workspace, and a stage has begun that may have left something there."""
    begun = state.draft.job_seen or bool(state.draft.fields.get("attempts"))
    if state.spec is not None and state.spec.workspace.existing_claim is not None:
        return begun
    claim = state.own_claim
    return begun and claim is not None and not claim.deleting


def _outcome(state: Reconciliation, child: ChildJob) -> _Outcome | None:
    """The outcome of the Job that has ended; None while it may still succeed."""
    pods = sorted(state.pods_of(child), key=lambda pod: pod.created, reverse=True)
    ended = [pod for pod in pods if pod.end is not None and not pod.disrupted]
    if ended:
        return _result(state, child, ended[0])
    if child.finished or child.deleting:
        return _lost(_without_result(child, pods))
    return None


def _result(state: Reconciliation, child: ChildJob, pod: Pod) -> _Outcome:
    end = pod.end
    message = "" if end is None else end.message
    try:
        result = parse_result(message, uid=state.job.uid, stage=Stage.REPORT, attempt=child.attempt)
    except MalformedDocumentError as error:
        found = f"its result {error}" if message else "it left no result"
        return _lost(f"pod {pod.name} sent no report: {found}")
    if result.outcome != "Succeeded":
        return _Outcome(result.reason or Reason.REPORT_LOST, result.message)
    told = () if result.report is None else result.report.tracking
    if result.report is not None and result.report.failure is not None:
        return _Outcome(result.report.failure.reason, result.report.failure.message, told)
    return _Outcome(Reason.REPORT_PUBLISHED, "", told)


def _without_result(child: ChildJob, pods: Iterable[Pod]) -> str:
    names = ", ".join(pod.name for pod in pods) or "none of its pods is left"
    return f"Job {child.name} ended without a result: {child.failure or names}"


def _why_late(state: Reconciliation, child: ChildJob | None) -> str:
    condition = Condition.REPORT_PUBLISHED if state.wants_copies else Condition.TRACKED
    shown = state.draft.conditions.message(condition) if child is None else ""
    pods = () if child is None else state.pods_of(child)
    waiting = [pod.unschedulable or ": ".join(pod.waiting or ()) for pod in pods]
    otherwise = "its Job was never created" if child is None else "its pod did not end"
    cause = next(filter(None, [*waiting, shown]), otherwise)
    return (
        f"the report must be published {REPORT_SECONDS // 60} min after the end at the latest, found: {cause}"
    )


def _pending(state: Reconciliation, message: str) -> Reconciliation:
    return _with(state, Truth.UNKNOWN, Reason.PUBLISHING_REPORT, message)


def _lost(message: str) -> _Outcome:
    return _Outcome(Reason.REPORT_LOST, message)


def _concluded(state: Reconciliation, outcome: _Outcome) -> Reconciliation:
    """Record the outcome for the destinations, and for the trackers if they wait for it."""
    truth = Truth.TRUE if outcome.reason == Reason.REPORT_PUBLISHED else Truth.FALSE
    message = clean_text(outcome.message)
    if state.untold_trackers and outcome.told:
        state = state.with_draft(state.draft.with_tracking(outcome.told))
    elif state.untold_trackers:
        entry = Entry(
            Condition.TRACKED, Truth.FALSE, Reason.TRACKER_FAILED, f"mlflow: {message or 'no record'}"
        )
        state = state.with_draft(state.draft.with_conditions([entry]))
    return _with(state, truth, outcome.reason, message)


def _with(state: Reconciliation, truth: Truth, reason: Reason | str, message: str) -> Reconciliation:
    """Set the conditions whose outcome is open."""
    conditions, entries = state.draft.conditions, []
    if state.wants_copies and conditions.status(Condition.REPORT_PUBLISHED) is Truth.UNKNOWN:
        entries.append(Entry(Condition.REPORT_PUBLISHED, truth, reason, message))
    if (
        truth is Truth.UNKNOWN
        and state.untold_trackers
        and conditions.status(Condition.TRACKED) is Truth.UNKNOWN
    ):
        entries.append(Entry(Condition.TRACKED, truth, reason, message))
    return state.with_draft(state.draft.with_conditions(entries))
