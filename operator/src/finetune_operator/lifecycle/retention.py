"""Decides how long objects stay: finished stage Jobs, and the workspace of a job that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.formats import parse_time
from finetune_operator.api.spec import Lifecycle

HELD_SECONDS = 60
"""Time for which an injected container may run after the trainer. Native sidecars end by themselves in this time."""


def child_expiry(
    attempt: Mapping[str, Any] | None, lifecycle: Lifecycle, now: datetime, *, held: bool = False
) -> datetime:
    """The time at which the Job of a recorded attempt is deleted.

    A Job without a recorded attempt is deleted at once: its status was lost, or a deadline ended it. `held` means that
    an injected container still runs. Such a pod keeps its GPU, so it stays for HELD_SECONDS at most.
    """
    if attempt is None or "completionTime" not in attempt:
        return now
    keep = lifecycle.keep_children_seconds
    seconds = keep.success if attempt["outcome"] == "Succeeded" else keep.failure
    if held:
        seconds = min(seconds, HELD_SECONDS)
    return parse_time(attempt["completionTime"]) + timedelta(seconds=seconds)


def keeps_workspace(lifecycle: Lifecycle, *, succeeded: bool) -> bool:
    """True if the workspace's claim stays after the job has ended."""
    if lifecycle.keep_workspace == "OnFailure":
        return not succeeded
    return lifecycle.keep_workspace == "Always"
