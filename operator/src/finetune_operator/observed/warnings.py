"""Finds causes that show only in Events: a pod that cannot be created, scheduled or given its volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.formats import format_time, parse_time
from finetune_operator.api.stages import JOB_SET, job_of_set
from finetune_operator.contract.bounded import clean_text
from finetune_operator.observed.observation import ChildJob, Claim, Pod
from finetune_operator.observed.pending import is_stuck
from finetune_operator.observed.steady import form

MAXIMUM_LENGTH = 512
GRACE = timedelta(seconds=3)
"""Time in which a child normally starts. Most Events of this time are about trouble that ends by itself."""
RECENT = timedelta(minutes=5)
"""A cause that is this much older than the newest one has ended. Clients repeat an Event at least so often."""

JOB_SOURCE = "Job/"
_HARMLESS = {
    # The container's state says more.
    "Failed",
    "FailedToRetrieveImagePullSecret",
    # They are about a container that has run.
    "FailedKillPod",
    "FailedPostStartHook",
    "FailedPreStopHook",
}
_BLOCKING = {"JobCreationFailed", "NetworkNotReady", "ProvisioningFailed"}
"""Reasons of Warnings that keep a pod from starting, besides those that begin with Failed."""
PASSED = frozenset({"Pulling", "Pulled", "Created", "Started", "ProvisioningSucceeded", "SuccessfulCreate"})
"""Reasons of Events that show that whatever came before has ended."""
_VAGUE = ("timed out waiting for the condition", "context deadline exceeded")
"""The kubelet says so of every volume, between Events that name the cause."""


@dataclass(frozen=True)
class EventRecord:
    """An Event about an object."""

    uid: str
    """That of the object."""
    warning: bool
    reason: str
    message: str
    time: str
    """Its last time, as text of whole seconds, which sorts. Empty if it has none."""
    job: str = ""
    """Name of the object if it is a Job."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The object as `Unstarted.sources` may name it."""
        return (self.uid, f"{JOB_SOURCE}{self.job}") if self.job else (self.uid,)


@dataclass(frozen=True)
class Unstarted:
    """A Job without a pod or a pod that does not run, whose cause may show in Events only."""

    uid: str
    """That of the Job or the pod."""
    sources: frozenset[str]
    """uids of the objects whose Events may say the cause. The Job of a JobSet has its name after JOB_SOURCE instead."""
    since: datetime
    """Earlier Events are about something that has ended."""


def project_event(body: Mapping[str, Any]) -> EventRecord:
    """Project an Event in either of its forms: with `lastTimestamp`, or with `eventTime` and a series."""
    series = body.get("series") or {}
    times = (series.get("lastObservedTime"), body.get("lastTimestamp"), body.get("eventTime"))
    about = body.get("involvedObject") or {}
    return EventRecord(
        uid=about.get("uid", ""),
        warning=body.get("type") == "Warning",
        reason=str(body.get("reason", "")),
        message=str(body.get("message", "")),
        time=max(str(time or "")[:19] for time in times),
        job=about.get("name", "") if about.get("kind") == "Job" else "",
    )


def selector_of(source: str) -> str:
    """Return the field selector of the Events about a source of `Unstarted`."""
    if source.startswith(JOB_SOURCE):
        return f"involvedObject.kind=Job,involvedObject.name={source.removeprefix(JOB_SOURCE)}"
    return f"involvedObject.uid={source}"


def unstarted(
    children: Iterable[ChildJob], pods: Iterable[Pod], claim: Claim | None, now: datetime
) -> list[Unstarted]:
    """The children of one FineTuneJob that should have started by `now`, and whose state does not say why they have not."""
    pods = tuple(pods)
    owners = {pod.owner_uid for pod in pods}
    found = [
        Unstarted(child.uid, _sources(child), child.started)
        for child in children
        if child.uid not in owners
        and not (child.suspended or child.deleting or child.finished)
        and now - child.started >= GRACE
    ]
    for pod in pods:
        since = pod.scheduled or pod.created
        if not pod.live or pod.running or pod.deleting or is_stuck(pod) or now - since < GRACE:
            continue
        # The pod's state has the scheduler's message. The claim's Events say why there is no volume.
        sources = {pod.uid} if pod.unschedulable is None else set()
        sources |= {claim.uid} if claim is not None and not pod.node else set()
        if sources:
            found.append(Unstarted(pod.uid, frozenset(sources), since if pod.node else pod.created))
    return found


def _sources(child: ChildJob) -> frozenset[str]:
    """Return the sources of a child without a pod. The operator does not watch the Job of a JobSet."""
    made = {f"{JOB_SOURCE}{job_of_set(child.name)}"} if child.kind == JOB_SET else set()
    return frozenset({child.uid, *made})


def cause_of(events: Iterable[EventRecord], since: datetime, shown: str = "") -> str:
    """Reason and message of the Warning that keeps an object from starting; empty if there is none.

    The newest one counts, a specific one before a vague one. While the cause of `shown` is among the recent ones, it is
    `shown` itself, so that two missing volumes do not take turns in the status.
    """
    events = tuple(events)
    passed = max((event.time for event in events if event.reason in PASSED), default="")
    start = format_time(since)[:19]
    found = {
        clean_text(f"{event.reason}: {event.message}")[:MAXIMUM_LENGTH]: event.time
        for event in sorted(events, key=lambda event: event.time)
        if event.warning and _blocks(event.reason) and event.time >= start and event.time > passed
    }
    if not found:
        return ""
    oldest = format_time(parse_time(max(found.values()) + "Z") - RECENT)[:19]
    recent = {text: time for text, time in found.items() if time >= oldest}
    specific = {text: time for text, time in recent.items() if not any(vague in text for vague in _VAGUE)}
    causes = specific or recent
    if form(shown) in map(form, causes):
        return shown
    return max(causes, key=lambda text: (causes[text], text))


def has_passed(events: Iterable[EventRecord], since: datetime) -> bool:
    """True if an Event shows that an object has all that shows in Events only, such as the volumes of a pod that pulls."""
    start = format_time(since)[:19]
    return any(event.reason in PASSED and event.time >= start for event in events)


def _blocks(reason: str) -> bool:
    return reason in _BLOCKING or (reason.startswith("Failed") and reason not in _HARMLESS)
