"""Tells a trainer that stands still from one that works, or that the network hides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_operator.api.formats import format_time
from finetune_operator.contract.result import Progress


@dataclass(frozen=True)
class Movement:
    """What the polls of one pod's trainer have shown.

    A poll that reaches nobody changes nothing: a network policy may hide a trainer that works. So the operator judges only
    the time between two polls that found the trainer.
    """

    pod_uid: str
    activity: str
    step: int
    since: datetime
    """Time of the first poll that showed this activity and step."""
    seen: datetime
    """Time of the last poll that found the trainer, whether it answered or not."""
    silent: bool = False
    """The trainer's port accepted the last connection and said nothing."""


def answered(last: Movement | None, pod_uid: str, progress: Progress, now: datetime) -> Movement:
    """The movement after a report. A trainer that takes no step but another activity moves, too."""
    shown = (pod_uid, progress.activity, progress.step)
    if last is not None and (last.pod_uid, last.activity, last.step) == shown:
        return replace(last, seen=now, silent=False)
    return Movement(*shown, since=now, seen=now)


def unanswered(last: Movement | None, pod_uid: str, now: datetime) -> Movement | None:
    """The movement after a poll that the trainer's own port accepted and did not answer.

    Nothing is known about a trainer that has never answered: its port may be that of another program.
    """
    if last is None or last.pod_uid != pod_uid:
        return None
    return replace(last, seen=now, silent=True)


def stands_still(movement: Movement, limit: timedelta) -> bool:
    """True if the trainer was found without movement for `limit`."""
    return movement.seen - movement.since >= limit


def describe_standstill(movement: Movement, limit: timedelta, pod_name: str) -> str:
    """What must be, what was found, and the remedy."""
    found = f"the trainer of pod {pod_name} is at step {movement.step} of {movement.activity} since {format_time(movement.since)}"
    if movement.silent:
        found += ", and accepts connections without answering"
    return (
        f"a trainer must move within lifecycle.noProgressSeconds ({limit.total_seconds():.0f} s), but {found}; "
        "raise the limit if this step takes longer"
    )
