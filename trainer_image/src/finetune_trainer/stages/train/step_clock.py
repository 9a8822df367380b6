"""The time of training's steps, without what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepClock:
    """Divides the time of a training into steps and pauses, such as evaluations and copies for checkpoints.

    A step ends when its numbers are known: a GPU computes it long after the host has queued it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._last = clock()
        self._paused = 0.0

    def begin(self) -> None:
        """Training begins now."""
        self._last = self._clock()
        self._paused = 0.0

    def end_step(self) -> float:
        """Return the seconds since the end of the last step, without the pauses."""
        now = self._clock()
        seconds = max(0.0, now - self._last - self._paused)
        self._last, self._paused = now, 0.0
        return seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count the time of a `with` block as a pause, even if a step ends in it."""
        started = self._clock()
        try:
            yield
        finally:
            # The part before the end of a step belongs to that step.
            self._paused += self._clock() - max(started, self._last)
