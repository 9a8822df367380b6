"""Whether and how a stage's attempt has ended, judged from its Job and pods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from finetune_operator.api.reasons import OPERATOR_CLASSES, Reason, ReasonClass, classify_trainer_reason
from finetune_operator.contract.result import Result, clean_text, parse_result
from finetune_operator.errors import MalformedDocumentError
from finetune_operator.observed.observation import ChildJob, ContainerEnd, Pod

_OPERATOR_REASONS = frozenset(Reason)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    kind: ReasonClass
    reason: str
    message: str
    result: Result | None = None
    exit_code: int | None = None
    node: str = ""
    finished: datetime | None = None


def judge(*, uid: str, child: ChildJob, pods: tuple[Pod, ...], suspending: bool) -> Ending | None:
    """How the attempt that `child` runs has ended; None while it goes on.

    The attempt has ended when the trainer's container has terminated, whatever other containers do. A pod that was
    disrupted, deleted or suspended is another matter unless it succeeded: the Job controller replaces it, or fails
    the Job, and only its verdict ends the attempt. What such a pod did not live to say is a disruption, not a failure.
    """
    newest_first = sorted(pods, key=lambda pod: pod.created, reverse=True)
    endings = [(pod, ending) for pod in newest_first if (ending := _pod_ending(uid, child, pod)) is not None]
    for _, ending in endings:
        if ending.outcome == "Succeeded":
            return ending
    stopping = suspending or child.suspended
    for pod, ending in endings:
        if not (stopping or pod.disrupted or pod.deleting):
            return ending
    if not child.finished:
        return None
    if endings:
        _, ending = endings[0]
        return _disrupted(ending) if ending.reason == Reason.STAGE_LOST else ending
    if newest_first:
        # The Job is counted as ended but its pod's last state has not come yet: the pod's event or removal follows.
        return None
    # A pod that ended by itself stays with its Job: somebody deleted this one.
    return _disrupted(lost(f"the pod of Job {child.name} was deleted before it left a result"))


def lost(message: str) -> Ending:
    """The ending of an attempt that left nothing to read."""
    return Ending("Failed", ReasonClass.RETRYABLE, Reason.STAGE_LOST, clean_text(message)[:1024])


def _disrupted(ending: Ending) -> Ending:
    """The same end as an interruption, which uses up no retry."""
    return replace(ending, outcome="Interrupted", kind=ReasonClass.INTERRUPTED, reason=Reason.DISRUPTED)


def _pod_ending(uid: str, child: ChildJob, pod: Pod) -> Ending | None:
    if pod.phase == "Failed" and not pod.disrupted and _outgrew_scratch(pod):
        return _scratch_full(pod)
    if pod.end is not None:
        return _container_ending(uid, child, pod, pod.end)
    if pod.phase == "Failed":
        return lost(f"pod {pod.name} failed before its container ran: {pod.reason}: {pod.message}")
    return None


def _container_ending(uid: str, child: ChildJob, pod: Pod, end: ContainerEnd) -> Ending:
    try:
        result = parse_result(end.message, uid=uid, stage=child.stage, attempt=child.attempt)
    except MalformedDocumentError as error:
        return _without_result(pod, end, f"its result {error}" if end.message else "it left no result")
    if result.reason in _OPERATOR_REASONS:
        return _without_result(pod, end, f"its result's reason must be a trainer's, found {result.reason}")
    if result.outcome == "Succeeded":
        if end.exit_code != 0:
            return _without_result(pod, end, "its result says Succeeded")
        return Ending(
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
        # The kernel took one of its processes, and the trainer lived to say that it misses it.
        return replace(_without_result(pod, end, ""), result=result)
    reason = result.reason or Reason.STAGE_LOST
    kind = (
        ReasonClass.INTERRUPTED
        if result.outcome == "Interrupted"
        else classify_trainer_reason(reason, end.exit_code)
    )
    return Ending(
        result.outcome,
        kind,
        reason,
        result.message,
        result=result,
        exit_code=end.exit_code,
        node=pod.node,
        finished=end.finished,
    )


def _outgrew_scratch(pod: Pod) -> bool:
    """Whether the kubelet evicted the pod for what it wrote, not for what the node lacked (that is a disruption)."""
    words = pod.message.lower()
    return pod.reason == "Evicted" and ("ephemeral" in words or "emptydir" in words)


def _scratch_full(pod: Pod) -> Ending:
    return Ending(
        "Failed",
        OPERATOR_CLASSES[Reason.SCRATCH_FULL],
        Reason.SCRATCH_FULL,
        clean_text(
            f"pod {pod.name} must keep within its own disk space, the kubelet evicted it: {pod.message}; "
            "everything large belongs to the workspace, so report a bug with the stage's log"
        )[:1024],
        exit_code=pod.end.exit_code if pod.end is not None else None,
        node=pod.node,
        finished=pod.end.finished if pod.end is not None else None,
    )


def _without_result(pod: Pod, end: ContainerEnd, detail: str) -> Ending:
    """An ending that only the kubelet speaks of."""
    reason = Reason.HOST_OUT_OF_MEMORY if end.reason == "OOMKilled" else Reason.STAGE_LOST
    cause = (
        "was killed for exceeding its memory limit"
        if reason is Reason.HOST_OUT_OF_MEMORY
        else f"ended with exit code {end.exit_code} ({end.reason or 'no reason'}): {detail}"
    )
    return Ending(
        "Failed",
        OPERATOR_CLASSES[reason],
        reason,
        clean_text(f"the trainer of pod {pod.name} {cause}")[:1024],
        exit_code=end.exit_code,
        node=pod.node,
        finished=end.finished,
    )
