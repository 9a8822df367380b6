"""Keeps the pauses of Python's garbage collector short, however many jobs the operator knows.

A full collection visits every object. With 10,000 jobs that takes a tenth of a second, in which no Lease is renewed and
no probe is answered. Nearly all objects live long, and reference counts free them. So only young objects are searched
for cycles, at regular times, and what survives that is not visited again until the rare full collection.
"""

from __future__ import annotations

import asyncio
import gc

TICK = 5.0
"""Seconds between collections of young objects."""
TICKS_OF_A_FULL_ONE = int(6 * 3600 / TICK)
"""Cycles that have become garbage late wait for this many ticks, which are six hours."""
_NEVER = 2**31 - 1


class Heap:
    """Collects instead of Python. Use it once in a process."""

    def __init__(self) -> None:
        self._ticks = 0

    async def run(self) -> None:
        """Collect until canceled. Then Python collects again."""
        thresholds = gc.get_threshold()
        gc.set_threshold(thresholds[0], thresholds[1], _NEVER)
        try:
            while True:
                self.tick()
                await asyncio.sleep(TICK)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()

    def tick(self) -> None:
        """Free the cycles of young objects, or now and then of all objects."""
        if self._ticks % TICKS_OF_A_FULL_ONE == 0:
            gc.unfreeze()
        self._ticks += 1
        gc.collect()
        gc.freeze()
