from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.cluster import namespace_watches
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.namespace_watches import LONGEST_PAUSE, NamespaceWatches, pause_after
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry

from tests.support.api_server import failure, serving
from tests.support.operator import make_spec

NAMESPACES = ("a", "b")


def make_body(namespace: str) -> dict[str, Any]:
    metadata = {
        "name": "demo",
        "namespace": namespace,
        "uid": f"uid-{namespace}",
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-24T09:00:00Z",
    }
    return {"metadata": metadata, "spec": make_spec()}


class Parts:
    """Two namespaces with a job each, of which the API server refuses some."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.lists = 0
        self.watched: list[str] = []
        """Each watch that has begun."""
        self.running: set[str] = set()
        self.broken: set[str] = set()
        """Namespaces whose watch fails at once."""
        self.forbidden: dict[str, Callable[[], None]] = {}
        """What each watch calls if a request of it is refused."""
        self.store: Store
        self.informer: Informer

    async def answer(self, request: web.Request) -> web.Response:
        """Lists of objects, and a refusal of what has no Role."""
        parts = request.path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else ""
        if namespace in self.refused:
            self.lists += 1
            return failure(403, f"cannot list in the namespace {namespace!r}")
        items = [make_body(namespace)] if parts[-1] == "finetunejobs" else []
        return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})

    async def watch(self, namespace: str, forbidden: Callable[[], None]) -> None:
        """A watch that runs until it is canceled."""
        self.watched.append(namespace)
        self.forbidden[namespace] = forbidden
        if namespace in self.broken:
            raise RuntimeError("a stream that makes no sense")
        self.running.add(namespace)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.running.discard(namespace)

    def keys(self) -> set[str]:
        """The namespaces whose job is known."""
        return {namespace for namespace, _ in self.store.job_keys()}


@asynccontextmanager
async def running(refused: set[str], broken: set[str] | None = None) -> AsyncIterator[Parts]:
    """The parts after the first lists, with their watches."""
    parts = Parts()
    parts.refused, parts.broken = refused, broken or set()
    handler: Any = parts.answer
    async with serving(handler) as api:
        gpus = GpuStore((), allow_time_slicing=False)
        queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
        parts.store = Store(gpus)
        parts.informer = Informer(parts.store, gpus, queue, Cluster(api), NAMESPACES)
        await parts.informer.synchronize()
        watches = asyncio.create_task(NamespaceWatches(parts.informer, parts.watch, time.monotonic).run())
        try:
            yield parts
            assert not watches.done(), "no namespace may end the others"
        finally:
            watches.cancel()
            await asyncio.wait({watches})
    assert parts.running == set(), "all watches end with the operator"


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition must become true within 10 s")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_watches, "FIRST_PAUSE", 0.02)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "must exist" in record.getMessage()]


async def test_every_namespace_is_read_and_watched() -> None:
    async with running(set()) as parts:
        await until(lambda: parts.running == {"a", "b"})
        assert parts.keys() == {"a", "b"}
        assert parts.informer.served == {"a": True, "b": True}
        assert sorted(parts.watched) == ["a", "b"]


async def test_a_refused_namespace_stops_no_other_and_is_served_when_it_has_a_role(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running({"b"}) as parts:
        assert parts.informer.seeded
        assert parts.keys() == {"a"}
        assert parts.informer.served == {"a": True, "b": False}
        await until(lambda: parts.lists >= 4)
        assert parts.running == {"a"}
        assert len(said(caplog)) == 1, "it is said once, not with each try"
        parts.refused.clear()
        await until(lambda: parts.running == {"a", "b"})
        assert parts.keys() == {"a", "b"}
        assert parts.informer.served == {"a": True, "b": True}
        assert any("namespace b is served" in record.getMessage() for record in caplog.records)


async def test_a_namespace_that_loses_its_role_is_forgotten_at_the_next_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(set()) as parts:
        await until(lambda: parts.running == {"a", "b"})
        parts.refused.add("b")
        await parts.informer.synchronize()
        assert parts.keys() == {"a"}
        await until(lambda: parts.running == {"a"})
        assert len(said(caplog)) == 1
        parts.refused.clear()
        await until(lambda: parts.running == {"a", "b"})
        assert parts.keys() == {"a", "b"}


async def test_a_refused_request_of_a_watch_ends_it_and_the_next_list_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(set()) as parts:
        await until(lambda: parts.running == {"a", "b"})
        parts.forbidden["b"]()
        await until(lambda: parts.watched.count("b") == 2)
        assert parts.informer.served == {"a": True, "b": True}, "the API server has changed its mind"
        parts.refused.add("b")
        parts.forbidden["b"]()
        await until(lambda: not parts.informer.served["b"])
        assert parts.keys() == {"a"}
        assert len(said(caplog)) == 1


async def test_a_watch_that_fails_begins_again_with_a_list() -> None:
    async with running(set(), {"b"}) as parts:
        await until(lambda: parts.watched.count("b") >= 3)
        assert parts.running == {"a"}
        assert parts.watched.count("a") == 1
        parts.broken.clear()
        await until(lambda: parts.running == {"a", "b"})


def test_the_pauses_grow_to_their_longest() -> None:
    pauses = [pause_after(failures, 0.5) for failures in range(1, 60)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(namespace_watches.FIRST_PAUSE)
    assert pause_after(10**6, 0.5) <= LONGEST_PAUSE
    assert pause_after(1, 1.0) / pause_after(1, 0.0) == pytest.approx(1.5)
