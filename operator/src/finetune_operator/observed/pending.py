"""Explains why a stage's pod is not running yet, with the messages of the scheduler and the kubelet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator.api.formats import format_time
from finetune_operator.api.reasons import Reason
from finetune_operator.contract.bounded import clean_text
from finetune_operator.observed.observation import ChildJob, Pod

NO_POD_GRACE = timedelta(seconds=30)
"""The Job controller normally creates a pod within a second. If it cannot, only its Events say why."""

_STUCK_REASONS = {
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}


_PULL = re.compile(r"(pod \S+: (?:Init:)?)(?:ErrImagePull|ImagePullBackOff): ")
_STUCK_INIT_REASONS = {f"Init:{reason}" for reason in (*_STUCK_REASONS, "CrashLoopBackOff")}
"""The trainer never restarts, but a sidecar that starts before it does."""


@dataclass(frozen=True)
class Waiting:
    """The reason for which a stage waits."""

    reason: Reason
    message: str


def steady(shown: str, found: str) -> str:
    """The message to show instead of `shown`: `found`, unless only the kubelet's word for a failing pull has changed.

    The kubelet alternates between two words with every try, and each change would be a write of the status.
    """
    before, now = _PULL.match(shown), _PULL.match(found)
    return shown if before and now and before[1] == now[1] else found


def is_stuck(pod: Pod) -> bool:
    """True if the pod has a node but cannot start the trainer there."""
    return pod.waiting is not None and pod.waiting[0] in _STUCK_REASONS | _STUCK_INIT_REASONS


def why_not_started(pod: Pod, warning: str) -> str:
    """The cause for which a pod with a node does not run. `warning` is that of its Events; empty if there is none."""
    reason, message = pod.waiting or ("", "")
    if is_stuck(pod) or not warning:
        return clean_text(f"{reason}: {message}" if message else reason or "the kubelet says no reason")
    return clean_text(warning)


def why_waiting(child: ChildJob, pods: tuple[Pod, ...], now: datetime) -> Waiting | None:
    """The reason for which the newest of the child's `pods` waits; None if there is no known reason."""
    if not pods:
        if now - child.created < NO_POD_GRACE or child.suspended:
            return None
        return Waiting(
            Reason.CHILD_REFUSED,
            # No number of seconds: it would change the status for as long as the job waits.
            f"Job {child.name} of {format_time(child.created)} has no pod. A quota or an admission policy may reject the "
            f"pod. Run kubectl describe job {child.name}.",
        )
    pod = max(pods, key=lambda candidate: candidate.created)
    if pod.unschedulable is not None:
        return Waiting(Reason.UNSCHEDULABLE, clean_text(f"pod {pod.name}: {pod.unschedulable}"))
    if pod.waiting is not None and is_stuck(pod):
        reason, message = pod.waiting
        return Waiting(Reason.POD_STUCK, clean_text(f"pod {pod.name}: {reason}: {message}"))
    return None
