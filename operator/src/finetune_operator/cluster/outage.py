"""Knows whether the API server answers. In an outage, one request at a time tries it, and one log line a minute says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

FIRST_DELAY = 1.0
LONGEST_DELAY = 15.0
LOG_SECONDS = 60.0

_logger = logging.getLogger(__name__)


class Outage:
    """The state of the connection to the API server."""

    def __init__(
        self, clock: Callable[[], float], draw: Callable[[], float], recovered: Callable[[], None]
    ) -> None:
        """`clock` is monotonic, in seconds; `draw` returns numbers from 0 to 1; `recovered` is called after an outage."""
        self._clock = clock
        self._draw = draw
        self._recovered = recovered
        self._since: float | None = None
        self._failures = 0
        self._next_try = 0.0
        self._logged = float("-inf")
        self._said = False
        self._ended = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def ongoing(self) -> bool:
        """True since the last request that was not answered, until one is."""
        return self._since is not None

    async def wait(self) -> None:
        """Wait in an outage: for its end, or for this caller's turn to try the API server."""
        while self._since is not None:
            async with self._turn:
                delay = self._next_try - self._clock()
                if self._since is None or delay <= 0:
                    # The others wait at least until this try has failed.
                    self._next_try = self._clock() + self._delay()
                    return
                self._ended.clear()
                try:
                    await asyncio.wait_for(self._ended.wait(), delay)
                except TimeoutError:
                    continue

    def failed(self, cause: str, retry_after: float = 0.0) -> None:
        """Record that the API server did not answer a request. `retry_after` is the time for which it asked."""
        now = self._clock()
        if self._since is None:
            self._since = now
            self._failures = 0
        self._failures += 1
        self._next_try = max(self._next_try, now + max(self._delay(), retry_after))
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._said = True
            _logger.warning("the API server has not answered for %.0f s: %s", now - self._since, cause)

    def answered(self) -> None:
        """Record that the API server answered."""
        if self._since is not None:
            if self._said:
                _logger.warning("the API server answers again after %.0f s", self._clock() - self._since)
            self._since = None
            self._said = False
            self._next_try = 0.0
            self._ended.set()
            self._recovered()

    def _delay(self) -> float:
        """Delay until the next try: 1 s, 2 s, 4 s and so on, at most 15 s, with jitter."""
        delay = min(FIRST_DELAY * 2.0 ** min(max(self._failures - 1, 0), 10), LONGEST_DELAY)
        return delay * (0.5 + self._draw())
