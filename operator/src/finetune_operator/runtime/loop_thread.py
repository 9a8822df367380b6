"""An event loop in a thread of its own, for work that must not wait for the operator's loop, nor delay it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

SWITCH_SECONDS = 0.001
"""Time for which one thread computes while another one waits. Every system call of a loop may cost it one such wait."""
Value = TypeVar("Value")


class LoopThread:
    """Runs coroutines for another event loop, during an `async with` block. Meanwhile, threads take short turns."""

    def __init__(self, name: str) -> None:
        """`name` is that of the thread."""
        self.loop = asyncio.new_event_loop()
        """The loop of the thread."""
        # A process that has to end does not wait for it.
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)

    async def __aenter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_SECONDS, self._interval))
        self._thread.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)
        self.loop.close()
        sys.setswitchinterval(self._interval)

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """The result of `work`, or its error."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))
