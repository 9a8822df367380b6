"""The losses that a watched job has reported, as a sparkline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_cli.text import number

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=*#"
KEPT = 2000


@dataclass
class LossHistory:
    """Losses by step. A resumed attempt repeats steps, and its losses replace the former ones."""

    losses: dict[int, float] = field(default_factory=dict)

    def add(self, job: Mapping[str, Any]) -> None:
        """Take the loss from the progress of a job, if it has one."""
        progress = (job.get("status") or {}).get("progress") or {}
        step, loss = progress.get("step"), number(progress.get("loss"))
        if progress.get("activity") != "Training" or step is None or loss is None:
            return
        self.losses = {known: value for known, value in self.losses.items() if known < step}
        self.losses[int(step)] = loss
        if len(self.losses) > KEPT:
            del self.losses[next(iter(self.losses))]

    def sparkline(self, width: int, *, blocks: bool) -> str:
        """Return the losses in the order of their steps, in at most `width` characters."""
        return sparkline(list(self.losses.values()), width, blocks=blocks)


def sparkline(values: Sequence[float], width: int, *, blocks: bool) -> str:
    """Return one character for each value, from the lowest to the highest level. More values than `width` are averaged."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    means = []
    for cell in range(count):
        part = values[cell * len(values) // count : (cell + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    levels = _BLOCKS if blocks else _ASCII
    low, high = min(means), max(means)
    if high == low:
        return levels[0] * count
    return "".join(levels[round((mean - low) / (high - low) * (len(levels) - 1))] for mean in means)
