"""Explains why a stage's pod is not running yet, with the messages of the scheduler and the kubelet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
_STUCK_INIT_REASONS = {f"Init:{reason}" for reason in (*_STUCK_REASONS, "CrashLoopBackOff")}
"""The trainer never restarts, but a sidecar that starts before it does."""


@dataclass(frozen=True)
class Waiting:
    """The reason for which a stage waits."""

    reason: Reason
    message: str


def is_stuck(pod: Pod) -> bool:
    """True if the pod has a node but cannot start the trainer there."""
    return pod.waiting is not None and pod.waiting[0] in _STUCK_REASONS | _STUCK_INIT_REASONS


def why_not_started(pod: Pod, warning: str) -> str:
    """The cause for which a pod with a node does not run. `warning` is that of its Events; empty if there is none."""
    reason, message = pod.waiting or ("", "")
    if is_stuck(pod) or not warning:
        return clean_text(f"{reason}: {message}" if message else reason or "the kubelet says no reason")
    return clean_text(warning)


def why_waiting(
    child: ChildJob, pods: tuple[Pod, ...], warnings: Mapping[str, str], now: datetime
) -> Waiting | None:
    """The reason for which the newest of the child's `pods` waits; None if there is no known reason.

    Of several pods that run at the same time, the first that waits counts.

    `warnings` are causes that show in Events only, by the uid of the Job or the pod.
    """
    if not pods:
        return None if child.suspended else _why_no_pod(child, warnings.get(child.uid, ""), now)
    found = (_why_pod_waits(pod, warnings) for pod in newest_pods(pods))
    return next((waiting for waiting in found if waiting is not None), None)


def newest_pods(pods: Iterable[Pod]) -> list[Pod]:
    """The newest pod of each number, in the order of the numbers. Most Jobs have one number."""
    newest = {pod.index: pod for pod in sorted(pods, key=lambda pod: pod.created)}
    return [newest[index] for index in sorted(newest)]


def _why_pod_waits(pod: Pod, warnings: Mapping[str, str]) -> Waiting | None:
    warning = warnings.get(pod.uid, "")
    if pod.unschedulable is not None:
        causes = "; ".join(filter(None, (pod.unschedulable, warning)))
        return Waiting(Reason.UNSCHEDULABLE, clean_text(f"pod {pod.name}: {causes}"))
    if pod.waiting is not None and is_stuck(pod):
        reason, message = pod.waiting
        return Waiting(Reason.POD_STUCK, clean_text(f"pod {pod.name}: {reason}: {message}"))
    if warning and pod.live and not pod.running:
        return Waiting(Reason.POD_STUCK, clean_text(f"pod {pod.name}: {warning}"))
    return None


def _why_no_pod(child: ChildJob, warning: str, now: datetime) -> Waiting | None:
    if warning:
        return Waiting(Reason.CHILD_REFUSED, clean_text(f"Job {child.name} has no pod: {warning}"))
    if now - child.started < NO_POD_GRACE:
        return None
    return Waiting(
        Reason.CHILD_REFUSED,
        # No number of seconds: it would change the status for as long as the job waits.
        f"Job {child.name} of {format_time(child.started)} has no pod. A quota or an admission policy may reject the "
        f"pod. Run kubectl describe job {child.name}.",
    )
