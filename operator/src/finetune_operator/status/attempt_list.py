"""The ended attempts that status keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.formats import format_time
from finetune_operator.api.reasons import DESTINATION_REASONS, Reason
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.observed.pod_ends import PodEnd

MAXIMUM_ATTEMPTS = 20
_ENDLESS = DESTINATION_REASONS | {Reason.POD_STUCK}
"""Reasons for which a stage is tried again without a limit."""
MAXIMUM_WAITS = 8
"""Attempts that ended for such a reason. With so many, the delay between attempts is at its longest (lifecycle/retry.py)."""


def failures(outcome: AttemptOutcome) -> dict[str, Any]:
    """Return the members of an attempt that name the rank that failed first, and how each of several pods ended."""
    found: dict[str, Any] = {}
    if outcome.result is not None and outcome.result.rank is not None:
        found["rank"] = outcome.result.rank
    if outcome.pods:
        found["pods"] = [_pod(end) for end in outcome.pods]
    return found


def _pod(end: PodEnd) -> dict[str, Any]:
    """One of several pods. What is not known is left out."""
    found = {
        "index": end.index,
        "first": end.first,
        "node": end.node or None,
        "rank": end.rank,
        "reason": end.reason,
        "exitCode": end.exit_code,
        "completionTime": None if end.finished is None else format_time(end.finished),
    }
    return {name: value for name, value in found.items() if value is not None}


def appended(attempts: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return `attempts` with `entry` as the newest, without the least useful ones if the list is full.

    A destination can fail, and a pod not start, without a limit, so the oldest of these go first. Other failures of the
    current stage are kept longest, because they count as retries.
    """
    found = [*attempts, entry]
    while len(found) > MAXIMUM_ATTEMPTS:
        waits = [index for index, old in enumerate(found) if old.get("reason") in _ENDLESS]
        counted = (entry["stage"], "Failed")
        others = (index for index, old in enumerate(found) if (old["stage"], old["outcome"]) != counted)
        del found[waits[0] if len(waits) > MAXIMUM_WAITS else next(others, 0)]
    return found
