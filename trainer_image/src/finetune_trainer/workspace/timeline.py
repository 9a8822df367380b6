"""When each attempt of each stage ran and how it ended, as the workspace remembers it for the job's report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune_trainer.workspace.layout import WorkspaceLayout

MAXIMUM_ENTRIES = 200
"""Older ones are dropped: a job that is interrupted every few minutes must not fill its workspace."""

Entry = dict[str, Any]
"""`stage`, `attempt` and `startTime`; `completionTime`, `outcome`, `reason` and `message` as soon as they are known."""


def begun(entries: Sequence[Entry], stage: str, attempt: int, now: str) -> list[Entry]:
    """Return the entries with a new one for an attempt that starts now."""
    return [*entries, {"stage": stage, "attempt": attempt, "startTime": now}][-MAXIMUM_ENTRIES:]


def ended(entries: Sequence[Entry], stage: str, attempt: int, end: Mapping[str, Any]) -> list[Entry]:
    """Return the entries with the end of the newest one of this attempt; unchanged if there is none."""
    place = next(
        (
            number
            for number in reversed(range(len(entries)))
            if (entries[number].get("stage"), entries[number].get("attempt")) == (stage, attempt)
        ),
        None,
    )
    if place is None:
        return list(entries)
    return [*entries[:place], {**entries[place], **end}, *entries[place + 1 :]]


def joined(entries: Sequence[Entry], attempts: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return the entries with the ends that only the operator has recorded, and its attempts that no trainer began."""
    known = {(entry.get("stage"), entry.get("attempt")): entry for entry in attempts}
    found: list[Entry] = []
    for entry in entries:
        recorded = known.pop((entry["stage"], entry["attempt"]), None)
        found.append(entry if recorded is None or "outcome" in entry else {**recorded, **entry})
    found += [dict(entry) for entry in known.values() if "startTime" in entry or "completionTime" in entry]
    return sorted(found, key=lambda entry: str(entry.get("startTime") or entry.get("completionTime")))


def read_timeline(layout: WorkspaceLayout) -> list[Entry]:
    """Return the entries in the order of their starts; none if the file is missing or broken."""
    try:
        document = json.loads(layout.timeline.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(document, list):
        return []
    return [
        entry
        for entry in document
        if isinstance(entry, dict) and {"stage", "attempt", "startTime"} <= entry.keys()
    ]


def write_timeline(layout: WorkspaceLayout, entries: Sequence[Entry]) -> None:
    """Replace the entries. Raises OSError."""
    write_json_atomically(layout.timeline, list(entries))
