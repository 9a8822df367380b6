"""Series of a job's state for alerts and dashboards: its reason, its stage and its wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import TRAINER_CLASSES, Reason
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.families import Family, number

OTHER = "Other"
"""Stands for reasons that this version does not know, because a trainer can report any."""
REASONS = frozenset({*(reason.value for reason in Reason), *TRAINER_CLASSES})
_LABELS = ("name", "namespace")
FAMILIES = {
    "finetunejob_status_reason": Family(
        "1 for the reason of the job's state, with its phase.", labels=(*_LABELS, "phase", "reason")
    ),
    "finetunejob_stage": Family(
        "1 for the stage that runs, waits or ended last.",
        labels=(*_LABELS, "stage"),
    ),
    "finetunejob_wait_start_timestamp_seconds": Family(
        "Time since which the job waits for a GPU, in a queue or while it is stalled.", "Unix time"
    ),
    "finetunejob_waited_seconds": Family("Duration of its earlier waits.", "seconds"),
}
_STAGES = ("Prepare", "Train", "Merge")


def state_lines(job: JobRecord, labels: str) -> list[str]:
    """The lines of each family of `FAMILIES`, in its order. `labels` are those of the job.

    Raises AttributeError, KeyError, TypeError or ValueError if another version has written what cannot be read.
    """
    status = job.status
    stage = (status.get("stage") or {}).get("name")
    waiting = status.get("waiting") or {}
    since, waited = waiting.get("since"), waiting.get("totalSeconds")
    return [
        f'finetunejob_status_reason{{{labels},phase="{_phase(job)}",reason="{reason_of(status)}"}} 1.0\n',
        f'finetunejob_stage{{{labels},stage="{stage}"}} 1.0\n' if stage in _STAGES else "",
        ""
        if since is None or "completionTime" in status
        else f"finetunejob_wait_start_timestamp_seconds{{{labels}}} {number(parse_time(since).timestamp())}\n",
        "" if waited is None else f"finetunejob_waited_seconds{{{labels}}} {number(float(waited))}\n",
    ]


def reason_of(status: Mapping[str, Any]) -> str:
    """The reason that `kubectl get -o wide` prints, that of `Succeeded`; `Other` if this version does not know it."""
    reason = find_condition(status, Condition.SUCCEEDED).get("reason", Reason.PENDING.value)
    return reason if reason in REASONS else OTHER


_PHASES = frozenset(
    {"Pending", "Preparing", "Training", "Merging", "Stalled", "Suspended", "Succeeded", "Failed"}
)


def _phase(job: JobRecord) -> str:
    return job.phase if job.phase in _PHASES else OTHER
