"""When the stages of a job ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_cli.cluster.client import has_ended
from finetune_cli.text import moment

STAGES = ("Prepare", "Train", "Merge")


@dataclass(frozen=True)
class Attempt:
    """One attempt of a stage. `end` and `outcome` are None while it runs.

    `node` is where it ran. Of several processes of TRAIN, `rank` is the one that failed first, and `node` is its node. Both are
    None if they are not known.
    """

    stage: str
    number: int
    start: datetime
    end: datetime | None = None
    outcome: str | None = None
    reason: str | None = None
    node: str | None = None
    rank: int | None = None

    def seconds(self, now: datetime) -> float:
        """Return the time from its start to its end, or to `now`. It includes the wait for a node."""
        return max(0.0, ((self.end or now) - self.start).total_seconds())


def timeline(job: Mapping[str, Any]) -> list[Attempt]:
    """Return the attempts in order, the running one last. The status has the last 20 finished ones."""
    status = job.get("status") or {}
    found = []
    for item in status.get("attempts") or ():
        start, end = moment(item.get("startTime")), moment(item.get("completionTime"))
        if start is not None and end is not None:
            found.append(
                Attempt(
                    item["stage"],
                    item.get("attempt") or 0,
                    start,
                    end,
                    item.get("outcome"),
                    item.get("reason"),
                    item.get("node"),
                    item.get("rank"),
                )
            )
    stage = status.get("stage") or {}
    start = moment(stage.get("startTime"))
    known = {(attempt.stage, attempt.number) for attempt in found}
    running = start is not None and not has_ended(job) and not stage.get("retryTime")
    if start is not None and running and (stage["name"], stage.get("attempt") or 0) not in known:
        found.append(Attempt(stage["name"], stage.get("attempt") or 0, start))
    return found


def stage_seconds(job: Mapping[str, Any], stage: str, now: datetime) -> float | None:
    """Return the time of all attempts of a stage; None if there was none."""
    attempts = [attempt for attempt in timeline(job) if attempt.stage == stage]
    return sum(attempt.seconds(now) for attempt in attempts) if attempts else None
