"""A job as one line for each change, for logs and pipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_cli.jobs.summary import summary
from finetune_cli.text import printable


def change_line(job: Mapping[str, Any]) -> str:
    """Return the state of a job on one line, without the time: the same state gives the same line."""
    facts = summary(job)
    parts = [facts["name"], facts["phase"] or "Pending"]
    if facts["phase"] not in {"Succeeded", "Failed", "Stalled", "Suspended"} and facts["activity"]:
        parts.append(facts["activity"])
        parts += [facts["percent"]] if facts["percent"] else []
        parts += [f"{facts['step']}/{facts['totalSteps']}"] if facts["totalSteps"] else []
        parts += [f"loss {facts['loss']}"] if facts["loss"] else []
    if facts["phase"] in {"Failed", "Stalled"}:
        parts.append(f"{facts['reason']}: {facts['message']}")
    if facts["phase"] == "Succeeded":
        parts += [facts["verdict"] or "", *facts["artifacts"]]
    return printable(" ".join(part for part in parts if part))
