"""The course of a training as JSON: loss, learning rate and gradient norm by step, and losses on held-out rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from finetune_trainer.report.event_file import write_event_file
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

DOCUMENT = "training.json"
MAXIMUM_POINTS = 400
"""Points of a curve. Longer trainings have the mean of equally many neighboring steps in each point."""


def training_report(
    job: str, history: Iterable[Mapping[str, Any]], held_out: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    """Return the course as JSON.

    `history` has the entries of finished steps: `step`, `loss`, `learning_rate` and `grad_norm`. `held_out` has (step, loss)
    on the selection rows. Losses are in nats per supervised token. A step that was repeated after a resume counts once.
    """
    steps = {int(entry["step"]): entry for entry in history if "loss" in entry}
    return {
        "version": "1.0",
        "job": job,
        "steps": len(steps),
        "points": _points([steps[step] for step in sorted(steps)]),
        "heldOut": [{"step": step, "loss": loss} for step, loss in held_out if math.isfinite(loss)],
    }


def write_training_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `training.json` and the event file for TensorBoard into `folder`. Raises OSError."""
    write_json_atomically(folder / DOCUMENT, report)
    write_event_file(folder, report)


def _points(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return at most `MAXIMUM_POINTS` means; `step` is the last one of a group."""
    size = max(1, math.ceil(len(steps) / MAXIMUM_POINTS))
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return [
        {
            "step": int(group[-1]["step"]),
            "loss": _mean(group, "loss"),
            "learningRate": _mean(group, "learning_rate"),
            "gradientNorm": _mean(group, "grad_norm"),
        }
        for group in groups
    ]


def _mean(group: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(entry[name]) for entry in group if entry.get(name) is not None]
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
