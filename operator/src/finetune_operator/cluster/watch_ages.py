"""Measures how long each watch has shown no sign of life: a byte of its stream, or a request.

Kopf reports events only, and a watch of objects that do not change has none for hours. Its stream has a bookmark every
minute, and Kopf opens another one if it is silent. Both are seen in Kopf's HTTP session. A request that fails counts, too:
it shows that the watch works and that the API server does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

_NAMESPACED = re.compile(r"/namespaces/([^/]+)/[^/]+$")

LONGEST_PAUSE = 300.0
"""Longest time for which a Retry-After explains silence."""


@dataclass
class _Watch:
    """One watch: the time of its last sign of life, and its current stream with the bytes that were seen of it."""

    last: float
    content: aiohttp.StreamReader | None = None
    seen: int = 0


class WatchAges:
    """The watches of one process, by the plural of their kind, after `NAMESPACE/` if they are of one namespace."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._watches: dict[str, _Watch] = {}

    def expect(self, plurals: Iterable[str], namespace: str = "") -> None:
        """Start to measure watches of these kinds, in all namespaces or in one."""
        now = self._clock()
        self._watches |= {_name(plural, namespace): _Watch(now) for plural in plurals}

    def forget(self, namespace: str) -> None:
        """Measure the watches of this namespace no more; of all namespaces if it is empty."""
        self._watches = {
            name: each for name, each in self._watches.items() if name.rpartition("/")[0] != namespace
        }

    def ages(self) -> dict[str, float]:
        """Seconds since the last sign of life of each watch."""
        now = self._clock()
        for watch in self._watches.values():
            if watch.content is not None and watch.content.total_bytes != watch.seen:
                watch.seen = watch.content.total_bytes
                watch.last = max(watch.last, now)
        return {plural: max(now - watch.last, 0.0) for plural, watch in self._watches.items()}

    def trace(self) -> aiohttp.TraceConfig:
        """The hooks that report the requests of an HTTP session."""
        config = aiohttp.TraceConfig()

        async def started(
            _session: aiohttp.ClientSession,
            _context: SimpleNamespace,
            request: aiohttp.TraceRequestStartParams,
        ) -> None:
            self._note(request.url.path)

        async def answered(
            _session: aiohttp.ClientSession, _context: SimpleNamespace, request: aiohttp.TraceRequestEndParams
        ) -> None:
            asked = request.response.headers.get("Retry-After", "")
            pause = min(float(asked), LONGEST_PAUSE) if asked.isdecimal() else 0.0
            watch = self._note(request.url.path, pause)
            if watch is not None and request.url.query.get("watch") == "true":
                watch.content, watch.seen = request.response.content, 0

        async def failed(
            _session: aiohttp.ClientSession,
            _context: SimpleNamespace,
            request: aiohttp.TraceRequestExceptionParams,
        ) -> None:
            self._note(request.url.path)

        config.on_request_start.append(started)
        config.on_request_end.append(answered)
        config.on_request_exception.append(failed)
        return config

    def _note(self, path: str, pause: float = 0.0) -> _Watch | None:
        """Note a sign of life of the watch that requests `path`, and `pause` seconds in which it may be silent."""
        found = _NAMESPACED.search(path)
        namespace = "" if found is None else found[1]
        watch = self._watches.get(_name(path.rpartition("/")[2], namespace))
        if watch is not None:
            watch.last = max(watch.last, self._clock() + pause)
        return watch


def _name(plural: str, namespace: str) -> str:
    return f"{namespace}/{plural}" if namespace else plural
