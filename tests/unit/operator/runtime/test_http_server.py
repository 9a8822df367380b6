from __future__ import annotations

import asyncio
import gzip
import threading
from datetime import timedelta

import aiohttp
import pytest
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.runtime import exposition as exposition_module
from finetune_operator.runtime import http_server
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.exposition import Exposition
from finetune_operator.runtime.http_server import (
    accepts_gzip,
    health_application,
    metrics_application,
    serve,
)
from finetune_operator.runtime.loop_thread import LoopThread
from prometheus_client import CollectorRegistry, Gauge

from tests.support.operator import NOW, make_job


async def get(application: aiohttp.web.Application, path: str) -> tuple[int, str]:
    """One GET against the application on a free port."""
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{runner.addresses[0][1]}{path}") as response,
        ):
            return response.status, await response.text()
    finally:
        await runner.cleanup()


async def test_probes_say_what_is_wrong() -> None:
    def application() -> aiohttp.web.Application:
        return health_application(live=tuple, ready=lambda: ("one problem", "another one"))

    assert await get(application(), "/healthz") == (200, "ok")
    assert await get(application(), "/readyz") == (503, "one problem; another one")


async def scrape(exposition: Exposition, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
    """The response to a scrape, and its bytes as they came."""
    runner = await serve(metrics_application(exposition), 0)
    # The other one is that of IPv6.
    port = next(address[1] for address in runner.addresses if len(address) == 2)
    try:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(
                f"http://127.0.0.1:{port}/metrics",
                headers=headers,
                skip_auto_headers=["Accept-Encoding"],
            ) as response,
        ):
            return response, await response.read()
    finally:
        await runner.cleanup()


def exposition_of(jobs: int) -> Exposition:
    """The series of some jobs, and of one metric of the operator's own."""
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    store = Store(GpuStore((), allow_time_slicing=False))
    for number in range(jobs):
        store.put_job(make_job(name=f"demo{number}", uid=f"uid-{number}"))
    retention = timedelta(minutes=10)
    return Exposition(registry, store, lambda: NOW, lambda: None, Activities(store), retention)


async def test_metrics_are_served_in_the_text_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CHUNK", 100)
    response, body = await scrape(exposition_of(20))
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    assert "Content-Encoding" not in response.headers
    assert "answer 42.0" in body.decode()
    assert body.count(b"finetunejob_info{") == 20


async def test_metrics_are_compressed_for_a_scraper_that_accepts_it() -> None:
    exposition = exposition_of(200)
    _, plain = await scrape(exposition)
    headers = {"Accept-Encoding": "deflate, gzip;q=0.5"}
    response, packed = await scrape(exposition, **headers)
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 5


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP; q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.00", False),
        ("x-gzip2", False),
    ],
)
def test_gzip_is_sent_only_to_who_accepts_it(header: str, accepted: bool) -> None:  # noqa: FBT001 -- a case
    assert accepts_gzip(header) is accepted


async def test_a_scrape_of_a_busy_operator_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition_module, "LOOK_SECONDS", 0.01)
    exposition = exposition_of(1)
    released = threading.Event()
    async with LoopThread("home") as home:
        monkeypatch.setattr(exposition, "_home", home.loop)
        home.loop.call_soon_threadsafe(released.wait)
        response, body = await scrape(exposition)
        released.set()
        # What the busy loop was asked meanwhile is done or canceled.
        await home.run(asyncio.sleep(0.01))
    assert (response.status, b"busy" in body) == (503, True)
