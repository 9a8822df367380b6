"""An event loop on virtual time whose owners can be stopped and continued like processes.

No wait costs real time: if nothing is ready, the clock jumps to the next timer. Every run has the same order of events.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, TypeVarTuple

_Value = TypeVar("_Value")
_Arguments = TypeVarTuple("_Arguments")

_SMALLEST_STEP = 1e-7
"""Seconds by which a jump moves the clock at least, so that a wait that rounds to nothing ends."""
_MAXIMUM_STEPS = 3_000_000
"""Callbacks in one life. More of them mean a loop that never rests."""


class Owner:
    """A simulated process: its callbacks run only while it is not stopped (SIGSTOP)."""

    def __init__(self) -> None:
        self.stopped = False
        self.parked: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []

    def cancel_all(self) -> None:
        """Cancel every task of this owner."""
        for task in self.tasks:
            task.cancel()


OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("OWNER", default=None)


class VirtualLoop(base_events.BaseEventLoop):
    """An event loop without sockets, threads or signals."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._steps = 0
        self._stopped = 0
        """Number of owners that are stopped."""
        self.set_debug(enabled=False)

    def time(self) -> float:
        """Seconds of virtual time since the start."""
        return self._now

    def call_soon(
        self,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run `callback` before time passes."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_task(
        self,
        coro: Coroutine[Any, Any, _Value] | Generator[Any, None, _Value],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_Value]:
        """Create a task that belongs to the present owner, or to that of `context`."""
        del name
        task: asyncio.Task[_Value] = asyncio.Task(coro, loop=self, context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.append(task)
        return task

    def stop_owner(self, owner: Owner) -> None:
        """Park all callbacks of `owner` from now on (SIGSTOP)."""
        if not owner.stopped:
            owner.stopped = True
            self._stopped += 1

    def continue_owner(self, owner: Owner) -> None:
        """Run the parked callbacks of `owner` in their order (SIGCONT)."""
        if owner.stopped:
            owner.stopped = False
            self._stopped -= 1
            self._ready.extend(owner.parked)
            owner.parked.clear()

    def _run_once(self) -> None:
        ready = self._ready
        if not ready:
            self._jump()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self._stopped:
                owner = handle._context.get(OWNER)  # type: ignore[attr-defined]  # typeshed omits it
                if owner is not None and owner.stopped:
                    owner.parked.append(handle)
                    continue
            handle._run()
        self._steps += len(ready) + 1
        if self._steps > _MAXIMUM_STEPS:
            raise RuntimeError(f"the simulation never rests, at {self._now:.3f} s of virtual time")

    def _jump(self) -> None:
        """Move the clock to the next timer, and make every timer ready that is due then."""
        timers = self._scheduled
        while timers and timers[0]._cancelled:
            self._take_timer()
        if not timers:
            raise RuntimeError("every task waits for something that never comes")
        self._now = max(timers[0].when(), self._now + _SMALLEST_STEP)
        while timers and timers[0].when() <= self._now:
            handle = self._take_timer()
            if not handle.cancelled():
                self._ready.append(handle)

    def _take_timer(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        handle._scheduled = False  # type: ignore[attr-defined]  # typeshed omits it
        return handle

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake this one."""
