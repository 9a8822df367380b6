"""An event loop on virtual time, and a client of a small API server in the same process.

A wait costs no time, so hours pass in seconds, and every run has the same order of events.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from finetune_operator.cluster import client
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.rate_limiter import TokenBucket
from kubernetes.aio.client import Configuration

from tests.support.api_server import ObjectServer

Value = TypeVar("Value")


class _Selector(selectors.SelectSelector):
    """Moves the clock of its loop forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Pass `timeout` seconds of virtual time."""
        if timeout is None:
            raise RuntimeError("every task waits for something that never comes")
        # Every round takes a moment. Else a wait that rounds to nothing would be repeated for ever.
        self.now += max(timeout, 1e-7)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop without sockets whose time is virtual."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds of virtual time since the start."""
        return self._virtual.now


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, Value]]) -> Value:
    """Run a coroutine on a new virtual loop."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()


class VirtualApi(ApiClient):
    """The real client, whose requests reach `server` after `latency` seconds without a network."""

    def __init__(
        self,
        server: ObjectServer,
        loop: VirtualLoop,
        *,
        qps: float = 50,
        burst: int = 100,
        latency: float = 0.005,
    ) -> None:
        super().__init__(
            Configuration(), TokenBucket(qps, burst, loop.time), lambda _method, _code: None, loop.time
        )
        self._server = server
        self._latency = latency

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        del content_type
        await asyncio.sleep(self._latency)
        response = self._server.respond(method, path, query or {}, dict(body or {}))
        return client._read_response(response.status, str(response.text).encode(), "")


def wall_clock(loop: VirtualLoop, start: datetime) -> Callable[[], datetime]:
    """The wall clock of a virtual loop that started at `start`."""
    return lambda: start + timedelta(seconds=loop.time())
