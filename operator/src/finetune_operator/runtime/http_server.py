"""The operator's HTTP servers: /metrics on one port, /healthz and /readyz on another."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from aiohttp import web

from finetune_operator.runtime.exposition import Exposition

Probe = Callable[[], Sequence[str]]
"""Returns the problems; empty if there is none."""


CHUNK = 2**20
"""Bytes that are written at once."""
FASTEST = 1
"""The level of gzip. Series are so much alike that the best one saves little more, in three times the time."""
GZIP = 31
"""The window of zlib that makes gzip."""
STOP_SECONDS = 2.0
"""Time for responses to end. A client that reads slowly must not delay the end of the process."""


def metrics_application(exposition: Exposition) -> web.Application:
    """Serve all series in the format and the encoding that the scraper accepts."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        try:
            scrape = await exposition.scrape(request.headers.get("Accept", ""))
        except TimeoutError:
            return web.Response(status=503, text="the operator's event loop must answer, but it is busy\n")
        response = web.StreamResponse(headers={"Content-Type": scrape.content_type})
        response.headers["Vary"] = "Accept-Encoding"
        parts = scrape.parts
        if accepts_gzip(request.headers.get("Accept-Encoding", "")):
            response.headers["Content-Encoding"] = "gzip"
            parts = _compressed(parts)
        await response.prepare(request)
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), CHUNK):
                await response.write(view[start : start + CHUNK])
        await response.write_eof()
        return response

    async def prepare(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(exposition.prepare())
        yield
        task.cancel()
        await asyncio.wait({task})

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.cleanup_ctx.append(prepare)
    return application


def accepts_gzip(header: str) -> bool:
    """True if an Accept-Encoding header names gzip, and not with the weight 0."""
    for each in header.lower().split(","):
        coding, _, parameters = each.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"q=0(\.0*)?", parameters.strip())
    return False


def _compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts in gzip. Other threads run while it computes."""
    packer = zlib.compressobj(FASTEST, wbits=GZIP)
    for part in parts:
        packed = packer.compress(part)
        if packed:
            yield packed
    yield packer.flush()


def health_application(*, live: Probe, ready: Probe) -> web.Application:
    """Serve both probes. A failing probe responds with 503 and its problems."""

    def respond(problems: Sequence[str]) -> web.Response:
        return web.Response(status=503 if problems else 200, text="; ".join(problems) or "ok")

    async def healthz(_: web.Request) -> web.Response:
        return respond(live())

    async def readyz(_: web.Request) -> web.Response:
        return respond(ready())

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    return application


async def serve(application: web.Application, port: int) -> web.AppRunner:
    """Listen on all addresses. The caller must clean up the runner."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
