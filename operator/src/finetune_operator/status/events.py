"""Derives Kubernetes Events from the transition between two statuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.reasons import Reason
from finetune_operator.status.reporting import climbed_down

MAXIMUM_NOTE_LENGTH = 1024
"""The API server rejects Events with longer messages."""

_NORMAL = {
    Reason.PENDING,
    Reason.PREPARING,
    Reason.TRAINING,
    Reason.MERGING,
    Reason.WAITING_FOR_GPU,
    Reason.SUSPENDED_BY_USER,
    Reason.JOB_SUSPENDED,
    Reason.QUOTA_PENDING,
    Reason.COMPLETED,
}


@dataclass(frozen=True)
class Transition:
    """One Event to record."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Transition]:
    """The Events between two statuses.

    They report attempts that succeeded, warnings about a plan, a new dataset and a merged model, ignored fields, a reduced status,
    and a new reason of the Succeeded condition.
    """
    found = []
    before = [_attempt_id(attempt) for attempt in old.get("attempts") or ()]
    for attempt in new.get("attempts") or ():
        if _attempt_id(attempt) not in before and attempt["outcome"] == "Succeeded":
            text = f"attempt {attempt['attempt']} of {attempt['stage']} succeeded"
            message = " ".join(filter(None, (text, climbed_down(attempt))))
            found.append(Transition("Normal", Reason.STAGE_SUCCEEDED, message[:MAXIMUM_NOTE_LENGTH]))
    warnings = (new.get("dataset") or {}).get("warnings") or ()
    if warnings and not old.get("dataset"):
        codes = ", ".join(dict.fromkeys(warning["code"] for warning in warnings))
        message = f"the dataset is accepted with warnings; see status.dataset.warnings: {codes}"
        found.append(Transition("Warning", Reason.DATASET_WARNINGS, message[:MAXIMUM_NOTE_LENGTH]))
    known = (old.get("plan") or {}).get("warnings") or ()
    found += [
        Transition("Warning", Reason.PLAN_WARNINGS, warning[:MAXIMUM_NOTE_LENGTH])
        for warning in (new.get("plan") or {}).get("warnings") or ()
        if warning not in known
    ]
    findings = (new.get("verification") or {}).get("warnings") or ()
    if findings and not old.get("verification"):
        found += [
            Transition(
                "Warning", Reason.MERGE_WARNINGS, f"{item['code']}: {item['message']}"[:MAXIMUM_NOTE_LENGTH]
            )
            for item in findings
        ]
    for condition in (Condition.FIELDS_IGNORED, Condition.STATUS_REDUCED):
        entry = find_condition(new, condition)
        if entry.get("status") == Truth.TRUE and entry["message"] != find_condition(old, condition).get(
            "message"
        ):
            message = entry["message"][:MAXIMUM_NOTE_LENGTH]
            found.append(Transition("Warning", entry["reason"], message))
    was, now = find_condition(old, Condition.SUCCEEDED), find_condition(new, Condition.SUCCEEDED)
    if now and now.get("reason") != was.get("reason"):
        kind: Literal["Normal", "Warning"] = "Normal" if now["reason"] in _NORMAL else "Warning"
        found.append(Transition(kind, now["reason"], (now["message"] or now["reason"])[:MAXIMUM_NOTE_LENGTH]))
    return found


def _attempt_id(attempt: Mapping[str, Any]) -> tuple[str, int]:
    return (attempt["stage"], attempt["attempt"])
