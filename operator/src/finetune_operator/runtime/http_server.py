"""The operator's HTTP servers: /metrics on one port, /healthz and /readyz on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from finetune_operator.runtime.exposition import Exposition

Probe = Callable[[], Sequence[str]]
"""Returns the problems; empty if there is none."""


CHUNK = 2**18
"""Bytes that are written at once. Between two chunks, other tasks have their turn."""


def metrics_application(exposition: Exposition) -> web.Application:
    """Serve all series in the format that the scraper accepts."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        scrape = await exposition.scrape(request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": scrape.content_type})
        response.content_length = sum(map(len, scrape.parts))
        await response.prepare(request)
        for part in scrape.parts:
            view = memoryview(part)
            for start in range(0, len(view), CHUNK):
                await response.write(view[start : start + CHUNK])
        await response.write_eof()
        return response

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    return application


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
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
