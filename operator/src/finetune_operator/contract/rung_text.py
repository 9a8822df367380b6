"""Names a rung of a result for people: in status, and in the summary of a local run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rung_text(rung: Mapping[str, Any]) -> str:
    """Return a rung of the result's `train.rung` or `train.failedRungs` as a noun."""
    others = [rung["optimizer"]] if rung.get("optimizer") else []
    others += ["dequantized weights"] if rung.get("weights") == "Dequantized" else []
    chosen = f"with {' and '.join(others)}, " if others else ""
    checkpointing = "with" if rung["gradientCheckpointing"] else "without"
    return f"micro-batches of {rung['microBatchSize']} {chosen}{checkpointing} gradient checkpointing"
