"""What outlives its use: stage Jobs for debugging, the workspace after the end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.formats import parse_time
from finetune_operator.api.spec import Lifecycle


def child_expiry(attempt: Mapping[str, Any] | None, lifecycle: Lifecycle, now: datetime) -> datetime:
    """When the Job of a recorded attempt is to be deleted.

    A Job that no attempt is recorded for is a leftover (of a lost status, a deadline): due at once.
    """
    if attempt is None or "completionTime" not in attempt:
        return now
    keep = lifecycle.keep_children_seconds
    seconds = keep.success if attempt["outcome"] == "Succeeded" else keep.failure
    return parse_time(attempt["completionTime"]) + timedelta(seconds=seconds)


def keeps_workspace(lifecycle: Lifecycle, *, succeeded: bool) -> bool:
    """Whether the workspace's claim stays when the job has ended."""
    if lifecycle.keep_workspace == "OnFailure":
        return not succeeded
    return lifecycle.keep_workspace == "Always"
