"""Measures by how much the event loop is late."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

TICK = 1.0
LASTING_TICKS = 5
REMEMBERED_TICKS = 60


class LoopLag:
    """Sleeps for a second again and again, and compares the time of each end with the time that was asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._lags: deque[float] = deque(maxlen=REMEMBERED_TICKS)

    async def run(self) -> None:
        """Measure until canceled."""
        while True:
            due = self._clock() + TICK
            await asyncio.sleep(TICK)
            self._lags.append(max(self._clock() - due, 0.0))

    @property
    def lasting(self) -> float:
        """The least lag of the last ticks, so that one pause alone does not count; 0 before there are enough."""
        last = list(islice(reversed(self._lags), LASTING_TICKS))
        return min(last) if len(last) == LASTING_TICKS else 0.0

    @property
    def largest(self) -> float:
        """The largest lag of the last minute, in seconds."""
        return max(self._lags, default=0.0)
