from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web
from finetune_operator.cluster.client import load_configuration
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.watches import build_settings, connection_info, deliver
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
    assert len(settings.watching.label_selectors) == 3
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
