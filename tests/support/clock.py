"""A clock that moves on command."""

from __future__ import annotations


class Clock:
    """Seconds, as a monotonic clock returns them."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The current time."""
        return self.now
