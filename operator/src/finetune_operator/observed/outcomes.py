"""The outcome of a stage's attempt, decided from its Job and pods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from finetune_operator.api.reasons import (
    DESTINATION_REASONS,
    OPERATOR_CLASSES,
    Reason,
    ReasonClass,
    classify_trainer_reason,
)
from finetune_operator.api.stages import Stage
from finetune_operator.contract.bounded import clean_text
from finetune_operator.contract.reading import parse_result
from finetune_operator.contract.result import Result
from finetune_operator.errors import MalformedDocumentError
from finetune_operator.observed.container_state import ContainerEnd
from finetune_operator.observed.observation import ChildJob, Pod
from finetune_operator.observed.pod_ends import PodEnd, pod_ends, precedence

_OPERATOR_REASONS = frozenset(Reason) - {Reason.HOST_OUT_OF_MEMORY, Reason.MODEL_SIZE_UNKNOWN}
"""Reasons that no trainer may report. It may get no more memory before the kernel kills it, and it may be unable to trace."""


@dataclass(frozen=True)
class AttemptOutcome:
    """The end of an attempt."""

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    kind: ReasonClass
    reason: str
    message: str
    result: Result | None = None
    exit_code: int | None = None
    node: str = ""
    finished: datetime | None = None
    pods: tuple[PodEnd, ...] = ()
    """How each of several pods ended that did not succeed, as far as it is known. The first one is the cause."""


def attempt_outcome(
    *, uid: str, child: ChildJob, pods: tuple[Pod, ...], suspending: bool
) -> AttemptOutcome | None:
    """The outcome of the attempt that `child` runs; None while it continues.

    The attempt has ended when the trainer's container has terminated; other containers do not matter. A pod that was
    disrupted, deleted or suspended does not end the attempt unless it succeeded. The Job controller replaces such a
    pod or fails the Job, and only the failed Job ends the attempt. If such a pod left no result, the outcome is a
    disruption, not a failure.

    Of several pods, each has the result after a success, and the first one ends last. If the first one is lost after that,
    the result of another counts. A failure of any ends the attempt. One that is interrupted may follow the failure of
    another, so its end counts when no pod is left that may tell more.
    """
    known = _known_ends(uid, child, pods)
    found = _outcome_of(child, pods, known, stopping=suspending or child.suspended)
    if found is None or child.pods == 1 or found.outcome == "Succeeded":
        return found
    # The one whose outcome counts is the cause, also if it was replaced by that of a disruption.
    cause = next((end for end in known if end[1] is found), None) or next(iter(known), None)
    others = [end for end in known if end is not cause]
    return replace(found, pods=pod_ends([] if cause is None else [(cause[0], found), *others]))


def _known_ends(uid: str, child: ChildJob, pods: tuple[Pod, ...]) -> list[tuple[Pod, AttemptOutcome]]:
    """The pods that have ended with their outcomes: the newest first, and of several the one that failed first."""
    newest_first = sorted(pods, key=lambda pod: pod.created, reverse=True)
    known = [(pod, outcome) for pod in newest_first if (outcome := _pod_outcome(uid, child, pod)) is not None]
    return known if child.pods == 1 else sorted(known, key=lambda found: precedence(*found))


def _outcome_of(
    child: ChildJob, pods: tuple[Pod, ...], known: list[tuple[Pod, AttemptOutcome]], *, stopping: bool
) -> AttemptOutcome | None:
    outcomes = [
        (pod, outcome) for pod, outcome in known if not (pod.index and outcome.outcome == "Succeeded")
    ]
    for _, outcome in outcomes:
        if outcome.outcome == "Succeeded":
            return outcome
    for pod, outcome in outcomes:
        if not (stopping or pod.disrupted or pod.deleting) and not _awaits_others(child, pods, outcome):
            return _disruption(known) if _follows_disruption(child, known, outcome) else outcome
    return _outcome_of_finished(child, pods, known) if child.finished else None


def _outcome_of_finished(
    child: ChildJob, pods: tuple[Pod, ...], known: list[tuple[Pod, AttemptOutcome]]
) -> AttemptOutcome | None:
    """The outcome of a Job that has ended, from what is known of its pods; None if more will be known."""
    succeeded = next((outcome for _, outcome in known if outcome.outcome == "Succeeded"), None)
    if succeeded is not None and len(known) == len(pods):
        return succeeded
    if known and succeeded is None:
        return _disruption(known)
    if pods:
        # The Job has ended but the last state of its pod is not known yet. The pod's event or removal follows.
        return None
    # A pod that ended by itself stays with its Job, so somebody deleted this one.
    return _disrupted(stage_lost(f"the pod of Job {child.name} was deleted before it left a result"))


def _follows_disruption(
    child: ChildJob, known: list[tuple[Pod, AttemptOutcome]], outcome: AttemptOutcome
) -> bool:
    """True if an interrupted pod only followed another one, which was disrupted and left no other reason."""
    pod, first = known[0]
    explained = first.outcome == "Interrupted" or first.reason == Reason.STAGE_LOST
    return child.pods > 1 and outcome.outcome == "Interrupted" and pod.disrupted and explained


def _disruption(known: list[tuple[Pod, AttemptOutcome]]) -> AttemptOutcome:
    """The outcome of the first pod; one that left nothing to read was disrupted."""
    _, outcome = known[0]
    return _disrupted(outcome) if outcome.reason == Reason.STAGE_LOST else outcome


def _awaits_others(child: ChildJob, pods: tuple[Pod, ...], outcome: AttemptOutcome) -> bool:
    """True if another pod of the same Job may still say why this one was interrupted."""
    interrupted = child.pods > 1 and not child.finished and outcome.outcome == "Interrupted"
    return interrupted and any(pod.live for pod in pods)


def stage_lost(message: str) -> AttemptOutcome:
    """The outcome of an attempt that left nothing to read."""
    return AttemptOutcome("Failed", ReasonClass.RETRYABLE, Reason.STAGE_LOST, clean_text(message)[:1024])


def no_progress(message: str, node: str) -> AttemptOutcome:
    """The outcome of an attempt whose trainer stands still."""
    kind = OPERATOR_CLASSES[Reason.NO_PROGRESS]
    return AttemptOutcome("Failed", kind, Reason.NO_PROGRESS, clean_text(message)[:1024], node=node)


def node_lost(message: str, *, uid: str, child: ChildJob, pods: tuple[Pod, ...], lost: Pod) -> AttemptOutcome:
    """The outcome of an attempt whose pod `lost` was on a node that is lost. Others of several pods may have followed it."""
    outcome = replace(_disrupted(stage_lost(message)), node=lost.node)
    if child.pods == 1:
        return outcome
    return replace(outcome, pods=pod_ends([(lost, outcome), *_known_ends(uid, child, pods)]))


def _disrupted(outcome: AttemptOutcome) -> AttemptOutcome:
    """The same end as an interruption, which does not count as a retry."""
    return replace(outcome, outcome="Interrupted", kind=ReasonClass.INTERRUPTED, reason=Reason.DISRUPTED)


def _pod_outcome(uid: str, child: ChildJob, pod: Pod) -> AttemptOutcome | None:
    if pod.phase == "Failed" and not pod.disrupted and _exceeded_scratch(pod):
        return _scratch_full(pod)
    if pod.end is not None:
        return _container_outcome(uid, child, pod, pod.end)
    if pod.phase == "Failed":
        return stage_lost(f"pod {pod.name} failed before its container ran: {pod.reason}: {pod.message}")
    return None


def _container_outcome(uid: str, child: ChildJob, pod: Pod, end: ContainerEnd) -> AttemptOutcome:
    try:
        result = parse_result(end.message, uid=uid, stage=child.stage, attempt=child.attempt)
    except MalformedDocumentError as error:
        return _without_result(pod, end, f"its result {error}" if end.message else "it left no result")
    if result.reason in _OPERATOR_REASONS:
        detail = f"its result's reason must be one of the trainer's, found {result.reason}"
        return _without_result(pod, end, detail)
    if result.outcome == "Succeeded":
        if end.exit_code != 0:
            return _without_result(pod, end, "its result says Succeeded")
        return AttemptOutcome(
            "Succeeded",
            ReasonClass.TERMINAL,
            Reason.STAGE_SUCCEEDED,
            "",
            result=result,
            exit_code=0,
            node=pod.node,
            finished=end.finished,
        )
    if end.reason == "OOMKilled" and result.outcome == "Failed" and result.reason == "InternalError":
        # The kernel killed one of the trainer's processes, and the trainer survived to report the missing one.
        return replace(_without_result(pod, end, ""), result=result)
    reason = result.reason or Reason.STAGE_LOST
    return AttemptOutcome(
        result.outcome,
        _classify(result, reason, child.stage, end.exit_code),
        reason,
        result.message,
        result=result,
        exit_code=end.exit_code,
        node=pod.node,
        finished=end.finished,
    )


def _classify(result: Result, reason: str, stage: Stage, exit_code: int) -> ReasonClass:
    if result.outcome == "Interrupted":
        return ReasonClass.INTERRUPTED
    if stage is Stage.MERGE and reason in DESTINATION_REASONS:
        # The trained adapter is in the workspace, and only something outside the job stands in its way.
        return ReasonClass.WAITING
    return classify_trainer_reason(reason, exit_code)


def _exceeded_scratch(pod: Pod) -> bool:
    """True if the kubelet evicted the pod for its own disk use. A node that lacks disk is a disruption instead."""
    text = pod.message.lower()
    return pod.reason == "Evicted" and ("ephemeral" in text or "emptydir" in text)


def _scratch_full(pod: Pod) -> AttemptOutcome:
    return AttemptOutcome(
        "Failed",
        OPERATOR_CLASSES[Reason.SCRATCH_FULL],
        Reason.SCRATCH_FULL,
        clean_text(
            f"pod {pod.name} must stay within its own disk space, but the kubelet evicted it: {pod.message}; "
            "large files belong in the workspace, so raise ephemeralStorage and its limit in podTemplate or in the chart's "
            "trainer.podDefaults, or report a bug with the stage's log if the size was the operator's"
        )[:1024],
        exit_code=pod.end.exit_code if pod.end is not None else None,
        node=pod.node,
        finished=pod.end.finished if pod.end is not None else None,
    )


def _without_result(pod: Pod, end: ContainerEnd, detail: str) -> AttemptOutcome:
    """An outcome that only the kubelet reports."""
    reason = Reason.HOST_OUT_OF_MEMORY if end.reason == "OOMKilled" else Reason.STAGE_LOST
    cause = (
        "was killed for exceeding its memory limit"
        if reason is Reason.HOST_OUT_OF_MEMORY
        else f"ended with exit code {end.exit_code} ({end.reason or 'no reason'}): {detail}"
    )
    return AttemptOutcome(
        "Failed",
        OPERATOR_CLASSES[reason],
        reason,
        clean_text(f"the trainer of pod {pod.name} {cause}")[:1024],
        exit_code=end.exit_code,
        node=pod.node,
        finished=end.finished,
    )
