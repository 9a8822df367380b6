"""The operator's HTTP servers: /metrics on one port, /healthz and /readyz on another."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Probe = Callable[[], str | None]
"""Returns the problem; None if there is none."""


def metrics_application(registry: CollectorRegistry) -> web.Application:
    """Serve the registry in the format that the scraper accepts."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    return application


def health_application(*, live: Probe, ready: Probe) -> web.Application:
    """Serve both probes. A failing probe responds with 503 and the problem."""

    def respond(problem: str | None) -> web.Response:
        return web.Response(status=200 if problem is None else 503, text=problem or "ok")

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
