from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from finetune_operator.cluster.watch_session import (
    LONGEST_PAUSE,
    STEADY_SECONDS,
    EventStream,
    Pace,
    WatchSession,
)

from tests.support.clock import Clock

EVENT = (
    b'{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a","annotations":{"b":"\\"ERROR\\""}}}}\n'
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def watching(
    handler: Handler,
    clock: Clock,
    answer_seconds: float = 30.0,
    listed: Callable[[str], int | None] = lambda _: None,
) -> AsyncIterator[tuple[WatchSession, str, list[float]]]:
    """A session, the URL of a collection that `handler` serves, and the session's pauses."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    application = web.Application()
    application.router.add_get("/api/v1/pods", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        clock.now += seconds

    session = WatchSession(aiohttp.ClientSession(), clock, pause, answer_seconds, listed)
    try:
        yield session, f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1/pods", pauses
    finally:
        await session.close()
        await runner.cleanup()


async def events(session: WatchSession, url: str) -> list[dict[str, object]]:
    """The events of one watch."""
    response = await session.request(method="get", url=f"{url}?watch=true")
    async with response:
        content = b"".join([chunk async for chunk in response.content.iter_chunked(2**20)])
    return [json.loads(line) for line in content.splitlines()]


def streaming(*chunks: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        return response

    return handler


def answering(status: int) -> Handler:
    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "code": status, "message": "no"}, status=status)

    return handler


@pytest.mark.parametrize("cut", [1, 5, 15, 40, len(EVENT) - 1, len(EVENT)])
async def test_events_pass_however_they_are_cut_into_pieces(cut: int) -> None:
    both = EVENT * 2
    async with watching(streaming(both[:cut], both[cut:]), Clock()) as (session, url, _):
        assert await events(session, url) == [json.loads(EVENT)] * 2


@pytest.mark.parametrize("cut", range(1, 25))
async def test_any_error_event_asks_for_a_new_list(cut: int) -> None:
    error = b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"a leader changed"}}\n'
    stream = streaming(EVENT, error[:cut], error[cut:] + EVENT)
    async with watching(stream, Clock()) as (session, url, _):
        first, last = await events(session, url)
    assert first == json.loads(EVENT)
    assert last == {"type": "ERROR", "object": {"kind": "Status", "code": 410}}


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422])
async def test_a_refused_watch_asks_for_a_new_list(status: int) -> None:
    async with watching(answering(status), Clock()) as (session, url, _):
        (event,) = await events(session, url)
    assert event == {"type": "ERROR", "object": {"kind": "Status", "code": 410}}


@pytest.mark.parametrize("status", [400, 409, 410])
async def test_a_refused_list_begins_anew_after_growing_pauses(status: int) -> None:
    async with watching(answering(status), Clock()) as (session, url, pauses):
        for _ in range(10):
            with pytest.raises(aiohttp.ClientPayloadError):
                await session.request(method="get", url=url)
    assert pauses == sorted(pauses)
    assert sum(pauses) > 30
    assert max(pauses) == LONGEST_PAUSE


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_kopf_sees_the_answers_after_which_it_tries_again(status: int) -> None:
    async with watching(answering(status), Clock()) as (session, url, pauses):
        response = await session.request(method="get", url=f"{url}?watch=true")
        assert response.status == status
        response.release()
    assert pauses == []


async def test_a_watch_that_ends_at_once_is_opened_again_after_growing_pauses() -> None:
    clock = Clock()
    async with watching(streaming(), clock) as (session, url, pauses):
        for _ in range(12):
            assert await events(session, url) == []
        assert pauses == sorted(pauses)
        assert max(pauses) == LONGEST_PAUSE
        clock.now += STEADY_SECONDS
        pauses.clear()
        await events(session, url)
    assert pauses == []


async def test_a_watch_that_nobody_answers_is_given_up() -> None:
    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError("the client must have given up")

    async with watching(silent, Clock(), answer_seconds=0.05) as (session, url, _):
        with pytest.raises(TimeoutError):
            await session.request(method="get", url=f"{url}?watch=true")


async def open_for_ever(request: web.Request) -> web.StreamResponse:
    """A watch with one event."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(EVENT)
    await asyncio.sleep(60)
    return response


class ClosedResponse:
    """A response whose connection this process has closed, as aiohttp reads it."""

    closed = True

    @property
    def content(self) -> ClosedResponse:
        return self

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        yield EVENT
        raise RuntimeError("Connection closed.")


async def test_a_read_after_the_end_is_an_error_after_which_kopf_tries_again() -> None:
    stream: Any = EventStream(ClosedResponse())  # type: ignore[arg-type]  # the part of a response that is read
    chunks = stream.iter_chunked(2**20)
    assert await anext(chunks) == EVENT
    with pytest.raises(aiohttp.ClientConnectionError):
        await anext(chunks)


async def test_the_end_of_a_session_ends_a_list_that_is_being_read() -> None:
    async with watching(open_for_ever, Clock()) as (session, url, _):
        listing = asyncio.create_task(session.request(method="get", url=url))
        await asyncio.sleep(0.2)
        assert not listing.done(), "the content of a list has arrived when it is returned"
        await session.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await asyncio.wait_for(listing, 10)


async def test_the_end_of_a_session_ends_its_open_watches() -> None:
    async with watching(open_for_ever, Clock()) as (session, url, _):
        response = await session.request(method="get", url=f"{url}?watch=true")
        chunks = response.content.iter_chunked(2**20)
        assert await anext(chunks) == EVENT
        await session.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await asyncio.wait_for(anext(chunks), 10)


def test_the_first_begin_waits_for_nothing() -> None:
    pace = Pace(Clock())
    assert [pace.delay(), pace.delay(), pace.delay()] == [0.0, 0.2, 0.4]


async def test_what_the_operator_has_listed_itself_is_not_listed_again() -> None:
    versions = {"/api/v1/pods": 7}
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.query_string)
        return web.json_response({"metadata": {"resourceVersion": "9"}, "items": [{}]})

    async def read(session: WatchSession, url: str) -> dict[str, Any]:
        async with await session.request(method="get", url=url) as response:
            found: dict[str, Any] = await response.json()
            return found

    async with watching(handler, Clock(), listed=lambda path: versions.pop(path, None)) as (session, url, _):
        next_page = f"{url}?limit=500&continue=abc"
        assert len((await read(session, next_page))["items"]) == 1, "a list that has begun goes on"
        found = await read(session, f"{url}?limit=500")
        assert found == {"metadata": {"resourceVersion": "7"}, "items": []}
        assert asked == ["limit=500&continue=abc"]
        assert len((await read(session, f"{url}?limit=500"))["items"]) == 1, "a later list is a real one"
