"""Work aside: an action that runs in a thread of its own, and that costs the run nothing if it hangs or fails."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

_log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Time between two attempts to start a thread."""


class BackgroundTask:
    """Calls `action` in a daemon thread after a request, at most once in `interval` seconds unless it is urgent.

    No method waits for the action, except `close`, and none raises. A thread that cannot start, or that has ended, is
    started again by `supervise`. Each kind of trouble costs one log line. Callers share no lock with the thread: a
    thread that ends while it holds one would stop the run.
    """

    def __init__(self, name: str, action: Callable[[], None], interval: float) -> None:
        self._name = name
        self._action = action
        self._interval = interval
        self._requested = False
        self._closed = False
        self._alarm: SimpleQueue[None] = SimpleQueue()
        self._logged: set[str] = set()
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._next_start = 0.0

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def request(self, *, urgent: bool = False) -> None:
        """Ask for a call of the action; several requests before it make one call."""
        self._requested = True
        if urgent:
            self._ring()

    def supervise(self) -> None:
        """Start the thread if it does not run. A forked process starts none: its parent has the thread."""
        if self.alive or self._closed or os.getpid() != self._process or time.monotonic() < self._next_start:
            return
        if self._starting.acquire(blocking=False):
            try:
                self._start()
            finally:
                self._starting.release()

    def close(self, timeout: float) -> None:
        """Call the action for the last time if it is requested, and wait at most `timeout` seconds for the end."""
        self._closed = True
        self._ring()
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        self._next_start = time.monotonic() + RETRY_SECONDS
        again = self._thread is not None
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._ring()  # what was requested meanwhile is not delayed
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._once("%s cannot start a thread (%s); the run continues and tries again", error)
            return
        self._thread = thread
        if again:
            self._once("the thread of %s had ended and runs again")

    def _ring(self) -> None:
        """End the thread's wait. One alarm is enough, and a thread that hangs must not collect them."""
        if self._alarm.empty():
            self._alarm.put(None)

    def _run(self) -> None:
        closed = False
        while not closed:
            with suppress(Empty):
                self._alarm.get(timeout=self._interval)
            closed = self._closed
            if self._requested:
                self._requested = False
                try:
                    self._action()
                except Exception as error:  # noqa: BLE001 -- no failure of telemetry may end it, or the run
                    self._once("%s failed (%r); the run continues", error)

    def _once(self, text: str, *values: object) -> None:
        if text not in self._logged:
            self._logged.add(text)
            _log.warning(f"telemetry: {text}", self._name, *values)
