"""The ended attempts that status keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.reasons import DESTINATION_UNWRITABLE

MAXIMUM_ATTEMPTS = 20
MAXIMUM_WAITS = 8
"""Failures of one destination. With so many, the delay between attempts is at its longest (lifecycle/retry.py)."""


def appended(attempts: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return `attempts` with `entry` as the newest, without the least useful ones if the list is full.

    A destination can fail without a limit, so its oldest failures go first. Other failures of the current stage are
    kept longest, because they count as retries.
    """
    found = [*attempts, entry]
    while len(found) > MAXIMUM_ATTEMPTS:
        waits = [index for index, old in enumerate(found) if old.get("reason") == DESTINATION_UNWRITABLE]
        counted = (entry["stage"], "Failed")
        others = (index for index, old in enumerate(found) if (old["stage"], old["outcome"]) != counted)
        del found[waits[0] if len(waits) > MAXIMUM_WAITS else next(others, 0)]
    return found
