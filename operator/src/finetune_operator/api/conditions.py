"""Conditions of a FineTuneJob in the sense of the API conventions and kstatus.

- Active: Reconciling True, Stalled False, Succeeded Unknown.
- Waiting for something outside (a node, a Secret, quota): Reconciling True with that reason. The job resumes by itself, so
  it is not Stalled, which kstatus reports as failed.
- No existing GPU or volume is suitable: Reconciling False, Stalled True, Succeeded Unknown. Somebody must act, so kstatus
  may report a failure. The job resumes by itself after the change.
- Suspended by the user: Reconciling False, Suspended True.
- Waiting for quota in a queue: Reconciling True and Suspended True, both with that reason. The queue ends it.
- Succeeded: Reconciling False, Stalled False.
- Failed: Stalled True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from finetune_operator.api.formats import format_time

MAXIMUM_MESSAGE_LENGTH = 4096
"""maxLength in the CRD. The API server rejects a status with a longer message."""


class Condition(StrEnum):
    """Every condition type, in the order in which they are written."""

    SUCCEEDED = "Succeeded"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    DATASET_READY = "DatasetReady"
    MODEL_READY = "ModelReady"
    TRAINED = "Trained"
    PUBLISHED = "Published"
    TRACKED = "Tracked"
    """True if every tracker has the record of the run. It is missing without trackers, and until MERGE has succeeded."""
    REPORT_PUBLISHED = "ReportPublished"
    """Whether the report is at the destinations. It is missing until the end of a job that asks for it."""
    FIELDS_IGNORED = "FieldsIgnored"
    """True if the spec has fields that this version does not know. It is missing until that happens once."""
    STATUS_REDUCED = "StatusReduced"
    """True if the API server refuses a part of the status. It is missing until that happens once."""


_KNOWN = frozenset(kind.value for kind in Condition)


class Truth(StrEnum):
    """A condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Conditions:
    """The conditions of one status, edited in place."""

    def __init__(self, stored: Sequence[Mapping[str, Any]], generation: int, now: datetime) -> None:
        """Start from the `stored` list; writes carry `generation` and, on a change of status, `now`."""
        self._entries: dict[str, dict[str, Any]] = {entry["type"]: dict(entry) for entry in stored}
        self._generation = generation
        self._now = format_time(now)

    def set(self, kind: Condition, status: Truth, reason: str, message: str = "") -> None:
        """Write one condition; lastTransitionTime moves only if its status changes."""
        previous = self._entries.get(kind)
        changed = previous is None or previous.get("status") != status
        self._entries[kind] = {
            "type": kind.value,
            "status": status.value,
            "reason": str(reason),
            "message": message[:MAXIMUM_MESSAGE_LENGTH],
            "observedGeneration": self._generation,
            "lastTransitionTime": self._now
            if previous is None or changed
            else previous["lastTransitionTime"],
        }

    def has(self, kind: Condition) -> bool:
        """Return True if the condition was ever written."""
        return kind in self._entries

    def set_if_missing(self, kind: Condition, status: Truth, reason: str) -> None:
        """Write a condition that has never been written; otherwise mark it as seen for this generation."""
        entry = self._entries.get(kind)
        if entry is None:
            self.set(kind, status, reason)
        else:
            entry["observedGeneration"] = self._generation

    def is_true(self, kind: Condition) -> bool:
        """Return True if the condition's status is True."""
        return self.status(kind) == Truth.TRUE

    def status(self, kind: Condition) -> Truth:
        """The condition's status, Unknown if it was never written."""
        return Truth(self._entries.get(kind, {}).get("status", Truth.UNKNOWN))

    def reason(self, kind: Condition) -> str:
        """The condition's reason, empty if it was never written."""
        return str(self._entries.get(kind, {}).get("reason", ""))

    def message(self, kind: Condition) -> str:
        """The condition's message, empty if it was never written."""
        return str(self._entries.get(kind, {}).get("message", ""))

    def to_list(self) -> list[dict[str, Any]]:
        """All conditions in their fixed order, then those of another version, which stay as they are."""
        known = [self._entries[kind] for kind in Condition if kind in self._entries]
        return known + [entry for kind, entry in self._entries.items() if kind not in _KNOWN]


def find_condition(status: Mapping[str, Any], kind: Condition) -> Mapping[str, Any]:
    """The condition of this type in a status, or an empty mapping."""
    return next((entry for entry in status.get("conditions") or () if entry["type"] == kind), {})
