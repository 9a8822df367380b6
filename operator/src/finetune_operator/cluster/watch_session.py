"""The HTTP session of Kopf's watches. It turns what would end a watch for good into a new list after a pause.

Kopf ends the whole operator for an answer that it does not expect: a conflict, an expired continuation of a list, or an
error event other than 410. It opens a watch that ends at once again without any pause. Neither needs a restart, because a
new list shows everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from weakref import WeakSet

import aiohttp

STEADY_SECONDS = 5.0
"""A watch that lasts this long has worked."""
ANSWER_SECONDS = 30.0
"""Time for the head of an answer. Without it, Kopf would notice only after 70 s that nobody answers."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 15.0
QUIET_SECONDS = 60.0
_KOPFS_OWN = frozenset({401, 403, 429})
"""Statuses below 500 after which Kopf tries again itself."""
_ERROR = b'{"type":"ERROR"'
"""The begin of an error event, as the API server writes it."""
_EXPIRED = b'{"type":"ERROR","object":{"kind":"Status","code":410}}\n'
"""The event after which Kopf lists everything again."""

_logger = logging.getLogger(__name__)


class Backoffs:
    """Kopf's delays between two tries of a request, without an end: after the last one, it would end the operator."""

    def __iter__(self) -> Iterator[float]:
        """1 s, 2 s, 4 s, 8 s, and then 15 s for ever."""
        yield from (1.0, 2.0, 4.0, 8.0)
        while True:
            yield 15.0


@dataclass
class Pace:
    """Delays that grow while something is tried again soon after it began."""

    clock: Callable[[], float]
    _began: float = float("-inf")
    _failures: int = 0

    def delay(self) -> float:
        """Seconds to wait before the next begin: none at first, then 0.2 s, doubled up to 15 s."""
        now = self.clock()
        self._failures = self._failures + 1 if now - self._began < STEADY_SECONDS else 0
        found = (
            min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10), LONGEST_PAUSE) if self._failures else 0.0
        )
        self._began = now + found
        return found

    def reset(self) -> None:
        """Begin anew without a delay."""
        self._began, self._failures = float("-inf"), 0


class WatchSession:
    """The part of an aiohttp session that Kopf uses."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        answer_seconds: float = ANSWER_SECONDS,
        listed: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        """`clock` is monotonic, in seconds.

        `listed` gives the version at which the operator has listed a path itself. Then Kopf lists nothing before its watch.
        """
        self._listed = listed
        self._answer_seconds = answer_seconds
        self._session = session
        self._clock = clock
        self._pause = pause
        self._paces: dict[str, Pace] = {}
        self._said: dict[str, float] = {}
        self._open: WeakSet[EventStream | aiohttp.ClientResponse] = WeakSet()

    @property
    def headers(self) -> Any:
        """The headers of every request."""
        return self._session.headers

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._session.closed

    async def close(self) -> None:
        """Close all connections, also those of open watches and lists. Kopf opens these again with another session."""
        for response in list(self._open):
            # Otherwise a reader would wait until its timeout.
            response.close()
        await self._session.close()

    async def request(self, *, method: str, url: str, **options: Any) -> Any:
        """Send one request of a list or a watch.

        Raises aiohttp.ClientPayloadError for a list that is refused: Kopf begins it anew, from its first page. Raises
        TimeoutError if nobody answers: Kopf tries again.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        watches = query.get("watch") == ["true"]
        if not watches and "continue" not in query and (version := self._listed(parts.path)) is not None:
            return KnownList(version)
        pace = self._paces.setdefault(parts.path, Pace(self._clock))
        if watches:
            await self._pause(pace.delay())
        try:
            # The head of an answer comes at once, even if no event follows for hours.
            async with asyncio.timeout(self._answer_seconds):
                response = await self._session.request(method, url, **options)
        except (aiohttp.ClientError, OSError):
            pace.reset()
            raise
        if response.status in _KOPFS_OWN or response.status >= 500:
            # Kopf has pauses of its own for these, as for an error of the network.
            pace.reset()
            return response
        if response.status < 300:
            if watches:
                return self._stream(response)
            self._open.add(response)
            return await _whole(response)
        text = (await response.text())[:300]
        self._say(parts.path, f"{response.status}: {text}")
        response.release()
        if watches:
            return self._stream(response, expired=True)
        await self._pause(pace.delay())
        raise aiohttp.ClientPayloadError(f"the list was refused: {response.status}")

    def _stream(self, response: aiohttp.ClientResponse, *, expired: bool = False) -> EventStream:
        found = EventStream(response, expired=expired)
        self._open.add(found)
        return found

    def _say(self, path: str, problem: str) -> None:
        now = self._clock()
        if now - self._said.get(path, float("-inf")) >= QUIET_SECONDS:
            self._said[path] = now
            _logger.warning(
                "%s must be watched, and it is listed again after an answer with %s", path, problem
            )


@dataclass(frozen=True)
class KnownList:
    """The answer to a list whose objects are in the store: none, and the version from which the watch goes on."""

    version: int
    status = 200

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Nothing is open."""

    async def json(self) -> dict[str, Any]:
        """The list."""
        return {"metadata": {"resourceVersion": str(self.version)}, "items": []}


class EventStream:
    """The response to a watch, as Kopf reads it. It ends with the first error event, which becomes a 410."""

    status = 200

    def __init__(self, response: aiohttp.ClientResponse, *, expired: bool = False) -> None:
        """`expired` stands for a response with an error status."""
        self._response = response
        self._expired = expired

    @property
    def content(self) -> Self:
        """The events."""
        return self

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._response.closed

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._response.release()

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """The bytes of the events, at most `size` at once."""
        if self._expired:
            yield _EXPIRED
            return
        held = b""
        begins = True
        async for chunk in self._chunks(size):
            data = held + chunk
            start = 0 if begins and data.startswith(_ERROR) else data.find(b"\n" + _ERROR) + 1
            if start or (begins and data.startswith(_ERROR)):
                _logger.info("a watch ended with an error event: %s", data[start : start + 300])
                yield data[:start] + _EXPIRED
                return
            # What may be the begin of an error event waits for its rest.
            line = data.rfind(b"\n") + 1
            may_be = (
                (line > 0 or begins) and len(data) - line < len(_ERROR) and _ERROR.startswith(data[line:])
            )
            held = data[line:] if may_be else b""
            yield data[: len(data) - len(held)]
            begins = bool(held) or data.endswith(b"\n")
        if held:
            yield held

    async def _chunks(self, size: int) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_chunked(size):
                yield chunk
        except RuntimeError as error:
            raise _closed(self._response, error) from error


async def _whole(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """A list whose content has arrived."""
    try:
        await response.read()
    except RuntimeError as error:
        raise _closed(response, error) from error
    return response


def _closed(response: aiohttp.ClientResponse, error: RuntimeError) -> Exception:
    """The error of a read after `close`, after which Kopf opens the list or the watch again; else `error` itself.

    aiohttp raises RuntimeError for a connection that this process has closed. Kopf would end the watch for good.
    """
    return aiohttp.ClientConnectionError("the session was closed") if response.closed else error
