"""Kopf's real watches on a small API server: lists are empty, and streams have nothing but bookmarks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import kopf
import pytest
from aiohttp import web
from finetune_operator.cluster import watches
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.watch_ages import LONGEST_PAUSE, WatchAges
from finetune_operator.cluster.watches import (
    CLUSTER_KINDS,
    NAMESPACED_KINDS,
    build_registry,
    build_settings,
    open_session,
    run_watches,
)
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry

from tests.support.api_server import Handler, failure, serving
from tests.support.clock import Clock

KINDS = {
    "/api/v1": ("pods", "persistentvolumeclaims", "nodes", "namespaces"),
    "/apis/batch/v1": ("jobs",),
    "/apis/finetune.dev/v1alpha1": ("finetunejobs",),
}
BOOKMARK = json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5"}}}).encode() + b"\n"


def discovery(path: str) -> dict[str, Any] | None:
    """The API server's own description."""
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        versions = {
            group: {"groupVersion": f"{group}/{version}", "version": version}
            for group, version in (("batch", "v1"), ("finetune.dev", "v1alpha1"))
        }
        return {
            "groups": [
                {"name": name, "versions": [each], "preferredVersion": each}
                for name, each in versions.items()
            ]
        }
    if path in KINDS:
        return {
            "resources": [
                {
                    "name": plural,
                    "kind": plural.title(),
                    "singularName": plural[:-1],
                    "namespaced": plural not in {"nodes", "namespaces"},
                    "verbs": ["list", "watch"],
                }
                for plural in KINDS[path]
            ]
        }
    return None


class Bookmarks:
    """An API server whose streams send bookmarks, except those of the `silent` kinds."""

    def __init__(self, silent: set[str], refused: str = "") -> None:
        """It refuses every object of the namespace `refused`."""
        self.silent = silent
        self.refused = refused
        self.streams: set[str] = set()
        self.paths: set[str] = set()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        found = discovery(request.path)
        if found is not None:
            return web.json_response(found)
        self.paths.add(request.path)
        if self.refused and f"/namespaces/{self.refused}/" in request.path:
            return failure(403, "cannot list")
        if not request.query.get("watch"):
            return web.json_response({"metadata": {"resourceVersion": "5"}, "items": []})
        plural = request.path.rpartition("/")[2]
        response = web.StreamResponse()
        await response.prepare(request)
        self.streams.add(plural)
        while True:
            await asyncio.sleep(0.02)
            if plural not in self.silent:
                await response.write(BOOKMARK)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition must become true within 20 s")


async def only_silent(ages: WatchAges, clock: Clock) -> list[str]:
    """The kinds that show no sign of life, after the last bookmarks on their way have arrived."""
    for _ in range(20):
        clock.now += 1000
        for _ in range(50):
            await asyncio.sleep(0.02)
            silent = [plural for plural, age in ages.ages().items() if age > 0]
            if len(silent) == 1:
                return silent
    return []


async def test_bookmarks_of_kopfs_watches_are_signs_of_life() -> None:
    server, clock = Bookmarks(set()), Clock(0.0)
    kinds = (*NAMESPACED_KINDS, *CLUSTER_KINDS)
    ages = WatchAges(clock)
    ages.expect(kinds)
    handler: Any = server
    async with serving(handler) as api:
        gpus = GpuStore((), allow_time_slicing=False)
        queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
        informer = Informer(Store(gpus), gpus, queue, Cluster(api), "")
        registry = build_registry(informer, api._api.configuration, ages, kinds)
        running = asyncio.create_task(run_watches(registry, ""))
        try:
            await until(lambda: server.streams == set(kinds))
            clock.now = 1000.0
            await until(lambda: not any(ages.ages().values()))
            server.silent = {"pods"}
            assert await only_silent(ages, clock) == ["pods"]
            server.silent = set()
            await until(lambda: not any(ages.ages().values()))
        finally:
            running.cancel()
            await asyncio.wait({running})


def watch_of(api: ApiClient, namespace: str, forbidden: Callable[[], None]) -> asyncio.Task[None]:
    """Kopf's watches of one namespace."""
    gpus = GpuStore((), allow_time_slicing=False)
    queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
    informer = Informer(Store(gpus), gpus, queue, Cluster(api), [namespace])
    ages = WatchAges(time.monotonic)
    registry = build_registry(informer, api._api.configuration, ages, NAMESPACED_KINDS, forbidden)
    return asyncio.create_task(run_watches(registry, namespace))


async def test_watches_that_end_by_themselves_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient() -> kopf.OperatorSettings:
        settings = build_settings()
        settings.networking.error_backoffs = ()
        return settings

    monkeypatch.setattr(watches, "build_settings", impatient)
    handler: Any = Bookmarks(set(), refused="gone")
    async with serving(handler) as api:
        with pytest.raises(RuntimeError, match="the watches must run until they are canceled"):
            await asyncio.wait_for(watch_of(api, "gone", lambda: None), 20)


async def test_the_end_of_one_namespaces_watches_takes_nothing_of_another() -> None:
    server = Bookmarks(set(), refused="gone")
    handler: Any = server
    refused = asyncio.Event()
    async with serving(handler) as api:
        good, bad = watch_of(api, "team", refused.set), watch_of(api, "gone", refused.set)
        try:
            await asyncio.wait_for(refused.wait(), 20)
            bad.cancel()
            await asyncio.wait({bad}, timeout=10)
            assert bad.cancelled()
            await until(lambda: server.streams == set(NAMESPACED_KINDS))
            assert not good.done()
            assert all("/namespaces/" in path for path in server.paths), "nothing needs a ClusterRole"
        finally:
            good.cancel()
            await asyncio.wait({good})


@asynccontextmanager
async def session_of(handler: Handler, ages: WatchAges) -> AsyncIterator[tuple[Any, str]]:
    """A session as Kopf uses it, and the URL of an API server."""
    async with serving(handler) as api:
        host = api._api.configuration.host
        opened = open_session(kopf.ConnectionInfo(server=host), [ages.trace()])
        try:
            yield opened.aiohttp_session, host
        finally:
            await opened.aiohttp_session.close()


async def test_a_request_is_a_sign_of_life_of_its_own_watch_only() -> None:
    clock = Clock(0.0)
    ages = WatchAges(clock)
    ages.expect(["pods", "jobs"])

    async def handler(_: web.Request) -> web.Response:
        return failure(500)

    async with session_of(handler, ages) as (session, host):
        clock.now = 300.0
        async with await session.request(method="GET", url=f"{host}/api/v1/namespaces/team/pods?watch=true"):
            assert ages.ages() == {"pods": 300, "jobs": 300}
        async with await session.request(method="GET", url=f"{host}/api/v1/pods?watch=true"):
            assert ages.ages() == {"pods": 0, "jobs": 300}
        async with await session.request(method="GET", url=f"{host}/api/v1/nodes"):
            assert ages.ages() == {"pods": 0, "jobs": 300}


async def test_the_watches_of_each_namespace_are_measured_apart() -> None:
    clock = Clock(0.0)
    ages = WatchAges(clock)
    ages.expect(["pods"])
    ages.expect(["pods", "jobs"], "a")
    ages.expect(["pods"], "b")

    async def handler(_: web.Request) -> web.Response:
        return failure(403)

    async with session_of(handler, ages) as (session, host):
        clock.now = 300.0
        async with await session.request(method="GET", url=f"{host}/api/v1/namespaces/a/pods?watch=true"):
            assert ages.ages() == {"pods": 300, "a/pods": 0, "a/jobs": 300, "b/pods": 300}
    ages.forget("a")
    assert ages.ages() == {"pods": 300, "b/pods": 300}
    ages.forget("")
    assert ages.ages() == {"b/pods": 300}


async def test_a_watch_that_cannot_connect_is_alive_as_long_as_it_tries() -> None:
    clock = Clock(0.0)
    ages = WatchAges(clock)
    ages.expect(["pods"])
    opened = open_session(kopf.ConnectionInfo(server="http://127.0.0.1:1"), [ages.trace()])
    session: Any = opened.aiohttp_session
    clock.now = 300.0
    with pytest.raises(aiohttp.ClientConnectionError):
        await session.request(method="GET", url="http://127.0.0.1:1/api/v1/pods?watch=true")
    assert ages.ages() == {"pods": 0}
    clock.now = 500.0
    assert ages.ages() == {"pods": 200}
    await session.close()


@pytest.mark.parametrize(("asked", "pause"), [("120", 120.0), ("86400", LONGEST_PAUSE), ("soon", 0.0)])
async def test_the_time_for_which_the_server_asks_is_no_silence(asked: str, pause: float) -> None:
    clock = Clock(0.0)
    ages = WatchAges(clock)
    ages.expect(["pods"])

    async def handler(_: web.Request) -> web.Response:
        return web.json_response({}, status=429, headers={"Retry-After": asked})

    async with session_of(handler, ages) as (session, host):
        async with await session.request(method="GET", url=f"{host}/api/v1/pods"):
            clock.now = 400.0
        assert ages.ages() == {"pods": 400.0 - pause}


def test_nothing_is_measured_before_the_watches_start() -> None:
    assert WatchAges(Clock()).ages() == {}
