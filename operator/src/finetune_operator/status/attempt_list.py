"""The ended attempts that status keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.reasons import DESTINATION_REASONS, Reason

MAXIMUM_ATTEMPTS = 20
_ENDLESS = DESTINATION_REASONS | {Reason.POD_STUCK}
"""Reasons for which a stage is tried again without a limit."""
MAXIMUM_WAITS = 8
"""Attempts that ended for such a reason. With so many, the delay between attempts is at its longest (lifecycle/retry.py)."""


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
