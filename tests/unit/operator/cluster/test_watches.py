from __future__ import annotations

import asyncio
import gc
import getpass
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web
from finetune_operator.api.stages import GROUP, KIND, PLURAL, VERSION
from finetune_operator.cluster.client import load_configuration
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster, jobs_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.watch_ages import WatchAges
from finetune_operator.cluster.watches import (
    build_registry,
    build_settings,
    connection_info,
    deliver,
    run_watches,
)
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry

from tests.support.api_server import failure, serving


def make_object(name: str, owner: tuple[str, str, str] | None = None, **members: Any) -> dict[str, Any]:
    """An object of namespace `team`; `owner` is the kind, the name and the uid of its controller."""
    references = (
        [] if owner is None else [dict(zip(("kind", "name", "uid"), owner, strict=True), controller=True)]
    )
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-24T09:00:00Z",
        "ownerReferences": references,
    }
    return {"metadata": metadata, "spec": {}, "status": {}, **members}


JOB = ("FineTuneJob", "demo", "uid-demo")
OBJECTS = {
    "finetunejobs": make_object("demo"),
    "jobs": make_object("demo-prepare-0", JOB),
    "pods": make_object("demo-prepare-0-x", ("Job", "demo-prepare-0", "uid-demo-prepare-0")),
    "persistentvolumeclaims": make_object("demo-workspace", JOB),
    "nodes": make_object("gpu1"),
}


async def nobody(request: web.Request) -> web.Response:
    """An API server that knows nothing."""
    return failure(404, request.path)


def test_kopf_writes_nothing_and_watches_labeled_objects_only() -> None:
    settings = build_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert len(settings.watching.label_selectors) == 4
    assert set(settings.watching.label_selectors.values()) == {"finetune.dev/job"}


async def test_kopf_logs_in_with_the_clients_credentials(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://localhost:6443"}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )
    configuration = await load_configuration({"KUBECONFIG": str(kubeconfig)})
    info = await connection_info(configuration)
    assert isinstance(info, kopf.ConnectionInfo)
    assert (info.server, info.scheme, info.token) == ("https://localhost:6443", "Bearer", "secret")
    assert not info.insecure


async def test_an_event_of_every_kind_reaches_the_store_and_wakes_its_job() -> None:
    gpus = GpuStore((), allow_time_slicing=False)
    store = Store(gpus)
    queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
    async with serving(nobody) as api:
        informer = Informer(store, gpus, queue, Cluster(api), "")
        for plural, body in OBJECTS.items():
            deliver(informer, plural, {"type": None, "object": body})
        seen = store.observe(("team", "demo"))
        assert seen is not None
        assert (len(seen.children), len(seen.pods), len(gpus)) == (1, 1, 1)
        assert seen.claim is not None
        assert await queue.get() == ("team", "demo")
        for plural, body in OBJECTS.items():
            deliver(informer, plural, {"type": "DELETED", "object": body})
        assert store.observe(("team", "demo")) is None
        assert len(gpus) == 0


def test_kopf_neither_copies_nor_compares_objects() -> None:
    class Untouchable(dict[str, Any]):
        def __deepcopy__(self, _: object) -> Any:
            raise AssertionError("a copy costs more than everything else that is done with an event")

    persistence = build_settings().persistence
    body = kopf.Body({"metadata": {}, "spec": Untouchable(many="members")})
    diffs, progress = persistence.diffbase_storage, persistence.progress_storage
    essence = diffs.build(body=body, extra_fields=None)
    assert progress.clear(essence=essence) == {}
    assert diffs.fetch(body=body) is None


def resource(plural: str, kind: str, *, namespaced: bool) -> dict[str, Any]:
    """What the API server says about a kind."""
    verbs = ["list", "watch"]
    return {"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs}


EXTENSIONS = "apiextensions.k8s.io"
DISCOVERY: dict[str, Any] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {
        "resources": [
            resource("nodes", "Node", namespaced=False),
            resource("namespaces", "Namespace", namespaced=False),
        ]
    },
    "/apis": {
        "groups": [
            {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
            for group, version in ((GROUP, VERSION), (EXTENSIONS, "v1"))
        ]
    },
    f"/apis/{GROUP}/{VERSION}": {"resources": [resource(PLURAL, KIND, namespaced=True)]},
    f"/apis/{EXTENSIONS}/v1": {
        "resources": [resource("customresourcedefinitions", "CustomResourceDefinition", namespaced=False)]
    },
}
"""What Kopf asks before it watches."""


class WatchedServer:
    """An API server with one FineTuneJob, whose watches send a second one and stay open."""

    def __init__(self, event: str | None = None) -> None:
        """`event` is what the watch of FineTuneJobs sends."""
        self.event = event or json.dumps({"type": "ADDED", "object": make_object("second")})
        self.requests: list[tuple[str, str]] = []
        """The plural of each, with the version of a watch, or `list`."""
        self.end = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.split("/")[-1]
        if (discovered := DISCOVERY.get(request.path)) is not None:
            return web.json_response(discovered)
        if "watch" not in request.query:
            self.requests.append((plural, "list"))
            items = [make_object("demo")] if plural == PLURAL else []
            return web.json_response({"metadata": {"resourceVersion": "50"}, "items": items})
        self.requests.append((plural, request.query["resourceVersion"]))
        response = web.StreamResponse()
        await response.prepare(request)
        if plural == PLURAL:
            await response.write(self.event.encode() + b"\n")
        await self.end.wait()
        return response


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name, as the numeric user of a container is."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    with pytest.raises(KeyError):
        getpass.getuser()


async def watch_until(
    server: WatchedServer,
    kinds: tuple[str, ...],
    jobs: int,
    requests: int,
    listed: Callable[[Informer], object] = lambda _: None,
    known: Callable[[], object] = lambda: None,
) -> None:
    """Run the watches of `kinds` until so many jobs are known and so many requests were made.

    `listed` is called before that and `known` afterwards, while they run.
    """
    gpus = GpuStore((), allow_time_slicing=False)
    store = Store(gpus)
    queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
    handler: Any = server.answer
    async with serving(handler) as api:
        informer = Informer(store, gpus, queue, Cluster(api))
        listed(informer)
        registry = build_registry(informer, api._api.configuration, WatchAges(time.monotonic), kinds)
        watching = asyncio.create_task(run_watches(registry, ""))
        async with asyncio.timeout(30):
            while len(store.job_keys()) < jobs or len(server.requests) < requests:
                assert not watching.done(), watching
                await asyncio.sleep(0.02)
        known()
        watching.cancel()
        await asyncio.wait({watching})
        server.end.set()


async def test_kopf_keeps_nothing_large_of_an_object_that_is_in_the_store() -> None:
    """It holds each object for half a second more and then in a cycle. With many events, that is most of the memory."""
    body = make_object("second", spec={"OnlyInThisSpec": [{}]})
    body["metadata"] |= {
        "annotations": {"OnlyInThisAnnotation": [{}]},
        # Kopf reads these two afterwards.
        "deletionTimestamp": "2026-11-24T09:00:00Z",
        "finalizers": ["example.com/of-others"],
    }
    server = WatchedServer(json.dumps({"type": "MODIFIED", "object": body}))
    del body

    def large() -> list[str]:
        held = [each for each in gc.get_objects() if type(each) is dict]
        return [name for each in held for name in ("OnlyInThisSpec", "OnlyInThisAnnotation") if name in each]

    found: list[str] = []
    gc.collect()
    # Otherwise the collector might free by chance what is held in a cycle.
    gc.disable()
    try:
        await watch_until(server, (PLURAL,), jobs=2, requests=2, known=lambda: found.extend(large()))
    finally:
        gc.enable()
    assert found == []


@pytest.mark.usefixtures("nameless")
async def test_a_user_without_a_name_watches() -> None:
    await watch_until(WatchedServer(), (PLURAL,), jobs=1, requests=1)


async def test_a_watch_goes_on_where_the_operators_own_list_has_ended() -> None:
    def listed(informer: Informer) -> None:
        informer.put_job(make_object("demo"))
        informer.listed.note(jobs_path(), 41)

    server = WatchedServer()
    await watch_until(server, (PLURAL, "nodes"), jobs=2, requests=3, listed=listed)
    assert sorted(server.requests) == [(PLURAL, "41"), ("nodes", "50"), ("nodes", "list")]
