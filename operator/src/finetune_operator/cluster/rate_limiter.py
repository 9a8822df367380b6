"""A token bucket that limits the operator's requests to the API server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class TokenBucket:
    """Allows `rate` calls per second and up to `burst` at once. Waiting callers proceed in order."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._updated = clock()

    async def acquire(self) -> None:
        """Wait for one token."""
        delay = self.reserve()
        if delay > 0:
            await asyncio.sleep(delay)

    def reserve(self) -> float:
        """Take one token, on credit if there is none; returns the seconds to wait before its use."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)
