"""Connections that a moment with many requests has opened are left alone afterwards, and closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from finetune_operator.cluster.connections import RecentConnector

AT_ONCE, LATER = 6, 20


class Peer:
    """A server that knows from which port each request came. It answers from the moment on at which `gate` is open."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.full, self.gate = asyncio.Event(), asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.ports.append(request.transport.get_extra_info("peername")[1])
        if len(self.ports) == AT_ONCE:
            self.full.set()
        await self.gate.wait()
        return web.Response(text="answered")


@asynccontextmanager
async def serving() -> AsyncIterator[Peer]:
    peer = Peer()
    application = web.Application()
    application.router.add_get("/", peer.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield peer
    finally:
        await runner.cleanup()


async def get(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()


async def test_requests_one_after_another_use_one_of_the_open_connections() -> None:
    async with serving() as peer, aiohttp.ClientSession(connector=RecentConnector(limit=64)) as session:
        burst = [asyncio.create_task(get(session, peer.url)) for _ in range(AT_ONCE)]
        await peer.full.wait()
        peer.gate.set()
        await asyncio.gather(*burst)
        assert len(set(peer.ports)) == AT_ONCE
        for _ in range(LATER):
            await get(session, peer.url)
    (later,) = Counter(peer.ports[AT_ONCE:]).items()
    assert later == (peer.ports[-1], LATER)
    assert later[0] in peer.ports[:AT_ONCE]


async def test_a_connection_that_is_closed_is_not_used_again() -> None:
    async with serving() as peer, aiohttp.ClientSession(connector=RecentConnector(limit=64)) as session:
        peer.gate.set()
        async with session.get(peer.url, headers={"Connection": "close"}) as response:
            await response.read()
        await get(session, peer.url)
    assert len(set(peer.ports)) == 2
