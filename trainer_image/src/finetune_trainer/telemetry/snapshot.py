"""The state of a stage's progress after one update."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Snapshot:
    """One update of the progress, and the time and step at which its activity began.

    `total`, `loss` (nats per supervised token), `learning_rate`, `gradient_norm`, `tokens_per_second` and
    `peak_memory_bytes` are None while they are unknown.
    """

    activity: str
    step: int
    total: int | None
    loss: float | None
    learning_rate: float | None
    gradient_norm: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    heartbeat: datetime
    activity_started: datetime
    first_step: int

    def estimated_completion(self) -> datetime | None:
        """Estimate the activity's end from its mean speed so far; None while no step is done or no total is known."""
        done = self.step - self.first_step
        if self.total is None or done <= 0 or self.step > self.total:
            return None
        elapsed = (self.heartbeat - self.activity_started).total_seconds()
        return self.heartbeat + timedelta(seconds=elapsed / done * (self.total - self.step))
