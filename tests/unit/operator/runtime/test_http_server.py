from __future__ import annotations

from datetime import timedelta

import aiohttp
import pytest
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.runtime import http_server
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.exposition import Exposition
from finetune_operator.runtime.http_server import health_application, metrics_application
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


async def test_metrics_are_served_in_the_text_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CHUNK", 100)
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    store = Store(GpuStore((), allow_time_slicing=False))
    for number in range(20):
        store.put_job(make_job(name=f"demo{number}", uid=f"uid-{number}"))
    exposition = Exposition(
        registry,
        store,
        lambda: NOW,
        lambda: None,
        Activities(store, timedelta(minutes=10)),
        timedelta(minutes=10),
    )
    status, text = await get(metrics_application(exposition), "/metrics")
    assert status == 200
    assert "answer 42.0" in text
    assert text.count("finetunejob_info{") == 20
