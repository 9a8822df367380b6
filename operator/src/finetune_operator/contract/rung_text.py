"""Names a rung of a result for people: in status, and in the summary of a local run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rung_text(rung: Mapping[str, Any]) -> str:
    """Return a rung of the result's `train.rung` or `train.failedRungs` as a noun."""
    optimizer = f"with {rung['optimizer']} and " if rung.get("optimizer") else ""
    checkpointing = "without " if not rung["gradientCheckpointing"] else "" if optimizer else "with "
    return f"micro-batches of {rung['microBatchSize']} {optimizer}{checkpointing}gradient checkpointing"
