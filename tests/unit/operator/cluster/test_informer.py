"""The informer with an API server that only lists objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.concurrency import LISTED_AT_ONCE
from finetune_operator.cluster.ended_jobs import ENDED, UNFINISHED
from finetune_operator.cluster.informer import FILL_DELAY, NODE_DELAY, Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.errors import ApiError
from finetune_operator.observed.lost_nodes import lost_node
from finetune_operator.observed.observation import Key
from finetune_operator.observed.urgency import Urgency
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry

from tests.support import api_server
from tests.support.operator import NOW, UID, make_job
from tests.support.world import World


def node_body(version: str, **spec: Any) -> dict[str, Any]:
    """A node with one GPU."""
    return {
        "metadata": {
            "name": "gpu1",
            "uid": "uid-gpu1",
            "resourceVersion": version,
            "labels": {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"},
        },
        "spec": spec,
        "status": {
            "allocatable": {"nvidia.com/gpu": "1"},
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": version}],
        },
    }


class Parts:
    """An informer with its store and its queue."""

    def __init__(self, api: ApiClient) -> None:
        self.gpus = GpuStore((), allow_time_slicing=False)
        self.store = Store(self.gpus)
        self.queue: WorkQueue[Key] = WorkQueue(OperatorMetrics(CollectorRegistry()), time.monotonic)
        self.informer = Informer(self.store, self.gpus, self.queue, Cluster(api), "")

    async def drain(self) -> set[Key]:
        """Take every key that waits."""
        found = set()
        while len(self.queue):
            key = await self.queue.get()
            self.queue.done(key)
            found.add(key)
        return found


@asynccontextmanager
async def serving(
    nodes: list[dict[str, Any]] | None, pods: Sequence[dict[str, Any]] = ()
) -> AsyncIterator[Parts]:
    """Parts whose API server has only these nodes and pods. None forbids to list nodes."""

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/demo-workspace"):
            return api_server.failure(404)
        if request.path == "/api/v1/namespaces/team/pods":
            return web.json_response({"metadata": {"resourceVersion": "50"}, "items": list(pods)})
        if request.path != "/api/v1/nodes":
            return web.json_response({"metadata": {"resourceVersion": "50"}, "items": []})
        if nodes is None:
            message = 'nodes is forbidden: User "finetune" cannot list resource "nodes"'
            return web.json_response({"reason": "Forbidden", "message": message}, status=403)
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": nodes})

    async with api_server.serving(answer) as api:
        yield Parts(api)


async def test_an_operator_that_may_not_read_nodes_starts_and_reports_it() -> None:
    async with serving(None) as parts:
        await parts.informer.synchronize()
        assert parts.informer.seeded
        problem = parts.gpus.inventory.problem
        assert problem is not None
        assert "cannot list resource" in problem
        assert "gpuProfiles" in problem


async def test_nodes_are_listed_and_deleted_nodes_are_removed() -> None:
    nodes = [node_body("10")]
    async with serving(nodes) as parts:
        await parts.informer.synchronize()
        assert list(parts.gpus.inventory.nodes) == ["gpu1"]
        nodes.clear()
        await parts.informer.synchronize()
        assert parts.gpus.inventory.nodes == {}


async def test_a_node_that_seems_to_be_gone_is_read_before_a_pod_is_removed_for_it() -> None:
    """The node has joined, but the watch of nodes lags behind that of pods."""
    nodes: list[dict[str, Any]] = []
    pod = {
        "metadata": {
            "name": "demo-train-0-x",
            "namespace": "team",
            "uid": "p",
            "resourceVersion": "40",
            "creationTimestamp": "2026-11-24T09:00:00Z",
            "deletionTimestamp": "2026-11-24T09:02:00Z",
            "labels": {"finetune.dev/job": "demo"},
            "ownerReferences": [{"kind": "Job", "name": "demo-train-0", "uid": "j", "controller": True}],
        },
        "spec": {"nodeName": "gpu1"},
        "status": {"phase": "Running"},
    }
    async with serving(nodes, [pod]) as parts:
        await parts.informer.synchronize()
        parts.store.put_job(make_job())
        nodes.append(node_body("45"))
        await parts.informer.refresh(("team", "demo"), NOW)
        found = parts.store.observe(("team", "demo"))
        assert found is not None
        assert [each.deleting for each in found.pods] == [True]
        assert list(found.inventory.nodes) == ["gpu1"]
        assert lost_node(found.pods[0], found.inventory) is None
        parts.informer.put_node(node_body("46"), deleted=True)
        nodes.clear()
        await parts.informer.refresh(("team", "demo"), NOW)
        found = parts.store.observe(("team", "demo"))
        assert found is not None
        assert lost_node(found.pods[0], found.inventory) is not None


@pytest.mark.parametrize("kind", ["Job", "pod", "claim"])
async def test_a_child_that_loses_its_owner_is_no_child_any_more(kind: str) -> None:
    """`kubectl delete --cascade=orphan` takes the owner off."""
    owner = {"kind": "FineTuneJob", "name": "demo", "uid": UID, "controller": True}
    names = {"Job": "demo-train-0", "pod": "demo-train-0-x", "claim": "demo-workspace"}
    metadata = {
        "name": names[kind],
        "namespace": "team",
        "uid": "child",
        "resourceVersion": "40",
        "creationTimestamp": "2026-11-24T09:00:00Z",
        "labels": {"finetune.dev/job": "demo"},
        "ownerReferences": [{**owner, "kind": "Job"} if kind == "pod" else owner],
    }
    async with serving([]) as parts:
        put = {
            "Job": parts.informer.put_child,
            "pod": parts.informer.put_pod,
            "claim": parts.informer.put_claim,
        }[kind]
        parts.store.put_job(make_job())
        assert put({"metadata": metadata, "spec": {}}) == ("team", "demo")
        found = parts.store.observe(("team", "demo"))
        assert found is not None
        assert (len(found.children), len(found.pods), found.claim is not None).count(False) == 2
        loose = {**metadata, "ownerReferences": [], "resourceVersion": "41"}
        assert put({"metadata": loose, "spec": {}}) == ("team", "demo"), "its former job is decided again"
        found = parts.store.observe(("team", "demo"))
        assert found is not None
        assert (found.children, found.pods, found.claim) == ((), (), None)


async def test_a_heartbeat_queues_no_job_and_a_change_only_jobs_without_a_gpu() -> None:
    async with serving([node_body("10")]) as parts:
        world = World()
        world.settle()
        waiting = replace(world.job, name="waiting")
        merging = make_job(name="merging", status={"stage": {"name": "Merge", "attempt": 0}})
        training = {"stage": {"name": "Train", "attempt": 0, "node": "gpu1"}}
        ended = {**world.job.status, "completionTime": "2026-11-24T09:00:00Z"}
        await parts.informer.synchronize()
        for job in (
            waiting,
            merging,
            make_job(name="training", status=training),
            make_job(name="ended", status=ended),
        ):
            parts.store.put_job(job)
        assert parts.gpus.inventory.offers("nvidia.com/gpu")
        await parts.drain()

        parts.informer.put_node(node_body("11"))
        await asyncio.sleep(2 * NODE_DELAY)
        assert await parts.drain() == set()

        parts.informer.put_node(node_body("12", unschedulable=True))
        parts.informer.put_node(node_body("13", unschedulable=False))
        await asyncio.sleep(2 * NODE_DELAY)
        assert await parts.drain() == {("team", "waiting")}

        parts.informer.put_node(node_body("13"), deleted=True)
        await asyncio.sleep(2 * NODE_DELAY)
        assert await parts.drain() == {("team", "waiting")}
        assert world.job.status["stage"]["name"] == Stage.PREPARE


async def taken_with(parts: Parts) -> Urgency:
    """The urgency of the key that waits, whose work ends at once."""
    key = await parts.queue.get()
    urgency = parts.queue.urgency_of(key)
    parts.queue.done(key)
    return urgency


async def test_what_has_changed_decides_how_urgent_a_key_is() -> None:
    owner = {"kind": "Job", "name": "demo-train-0", "uid": "j", "controller": True}
    metadata = {
        "name": "demo-train-0-x",
        "namespace": "team",
        "uid": "p",
        "creationTimestamp": "2026-11-24T09:00:00Z",
        "labels": {"finetune.dev/job": "demo"},
        "ownerReferences": [owner],
    }

    def pod(version: str, phase: str) -> dict[str, Any]:
        return {
            "metadata": {**metadata, "resourceVersion": version},
            "spec": {},
            "status": {"phase": phase},
        }

    async with serving([], [running := pod("40", "Running")]) as parts:
        parts.store.put_job(make_job())
        steps = [
            (running, Urgency.PROGRESS),
            # The watch lists what is known already.
            (running, Urgency.RESYNC),
            (pod("41", "Failed"), Urgency.ENDING),
            (pod("39", "Running"), Urgency.RESYNC),
        ]
        for body, expected in steps:
            parts.informer.wake(parts.informer.put_pod(body))
            assert await taken_with(parts) is expected
        parts.informer.wake(parts.informer.put_pod(pod("42", "Failed"), deleted=True))
        assert await taken_with(parts) is Urgency.ENDING


def train_pod(phase: str) -> dict[str, Any]:
    """The pod of TRAIN of `team/demo`, as a list has it."""
    metadata = {
        "name": "demo-train-0-x",
        "namespace": "team",
        "uid": "p",
        "resourceVersion": "40",
        "creationTimestamp": "2026-11-24T09:00:00Z",
        "labels": {"finetune.dev/job": "demo"},
        "ownerReferences": [{"kind": "Job", "name": "demo-train-0", "uid": "j", "controller": True}],
    }
    return {"metadata": metadata, "spec": {}, "status": {"phase": phase}}


async def test_a_full_list_is_urgent_only_for_what_the_watch_has_missed() -> None:
    ended = train_pod("Failed")
    listed = [ended]

    async def answer(request: web.Request) -> web.Response:
        items = listed if request.path == "/api/v1/pods" else []
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": items})

    async with api_server.serving(answer) as api:
        parts = Parts(api)
        parts.store.put_job(make_job(resource_version="90"))
        for expected in (Urgency.ENDING, Urgency.RESYNC):
            await parts.informer.synchronize()
            assert await taken_with(parts) is expected
        listed.clear()
        await parts.informer.synchronize()
        assert await taken_with(parts) is Urgency.ENDING, "its deletion was missed"


def job_body(**metadata: Any) -> dict[str, Any]:
    """The FineTuneJob of `make_job`, which has ended and whose end has been decided."""
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    found = {
        "name": "demo",
        "namespace": "team",
        "uid": UID,
        "generation": 1,
        "resourceVersion": "40",
        "creationTimestamp": "2026-11-24T09:00:00Z",
    }
    return {"metadata": {**found, **metadata}, "spec": world.job.spec, "status": world.job.status}


async def test_a_settled_job_is_decided_about_only_if_something_of_it_changes() -> None:
    claim = {
        "name": "demo-workspace",
        "namespace": "team",
        "uid": "c",
        "resourceVersion": "45",
        "labels": {"finetune.dev/job": "demo"},
        "ownerReferences": [{"kind": "FineTuneJob", "name": "demo", "uid": UID, "controller": True}],
    }
    listed = {"finetunejobs": [job_body()], "persistentvolumeclaims": []}

    async def answer(request: web.Request) -> web.Response:
        items = listed.get(request.path.rpartition("/")[2], [])
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": items})

    key = ("team", "demo")
    async with api_server.serving(answer) as api:
        parts = Parts(api)
        await parts.informer.synchronize()
        assert await parts.drain() == set(), "it was settled before the process started"
        parts.informer.wake(parts.informer.put_job(job_body()))
        assert await parts.drain() == set(), "the watch lists it once more"
        parts.informer.wake(parts.informer.put_job(job_body(resourceVersion="51", generation=2)))
        assert await parts.drain() == {key}, "its user has edited it"
        await parts.informer.synchronize()
        assert await parts.drain() == {key}, "the edit is not decided about"
        listed["finetunejobs"] = [job_body(resourceVersion="52")]
        listed["persistentvolumeclaims"] = [{"metadata": claim}]
        await parts.informer.synchronize()
        assert await parts.drain() == {key}, "its claim may have to go"


class EndedAndOthers:
    """FineTuneJobs of which `demo` has ended and `young` has not, and a pod of `demo` if there is one."""

    def __init__(self, *, selects: bool = True) -> None:
        self.selects = selects
        """False for a CRD without selectable fields."""
        self.ended = job_body()
        self.young = {"metadata": {**self.ended["metadata"], "name": "young", "uid": "y"}, "spec": {}}
        self.pods: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.failing: set[str] = set()

    async def __call__(self, request: web.Request) -> web.Response:
        plural = request.path.rpartition("/")[2]
        fields = request.query.get("fieldSelector", "")
        self.asked.append(f"{plural} {fields}".strip())
        if fields in self.failing:
            return api_server.failure(403)
        if fields and not self.selects:
            return api_server.failure(400, f"field label not supported: {fields}")
        if plural == "demo":
            return web.json_response(self.ended)
        jobs = {UNFINISHED: [self.young], ENDED: [self.ended], "": [self.young, self.ended]}
        items = jobs[fields] if plural == "finetunejobs" else self.pods if plural == "pods" else []
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": items})


DEMO, YOUNG = ("team", "demo"), ("team", "young")


async def test_a_start_reads_jobs_that_have_ended_after_all_others() -> None:
    server = EndedAndOthers()
    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        assert (parts.informer.seeded, parts.informer.filled) == (True, False)
        assert parts.store.job_keys() == [YOUNG]
        assert await parts.drain() == {YOUNG}
        await parts.informer.fill()
        assert parts.informer.filled
        assert set(parts.store.job_keys()) == {DEMO, YOUNG}
        assert await parts.drain() == {YOUNG}, "nothing is to be decided about the other one"
        assert parts.informer.listed.take("/apis/finetune.dev/v1alpha1/finetunejobs") == 50


async def test_a_job_that_has_ended_is_decided_about_when_it_is_read_if_it_is_not_settled() -> None:
    server = EndedAndOthers()
    server.ended["metadata"]["generation"] = 2
    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        await parts.drain()
        await parts.informer.fill()
        assert DEMO in await parts.drain()


async def test_a_job_that_has_ended_is_read_at_once_if_a_pod_of_it_still_runs() -> None:
    server = EndedAndOthers()
    server.pods = [train_pod("Running")]
    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        assert await parts.drain() == {DEMO, YOUNG}
        server.pods[0]["status"]["phase"] = "Succeeded"
        server.asked.clear()
        other = Parts(api)
        await other.informer.seed()
        assert await other.drain() == {YOUNG}, "it holds nothing"
        assert "demo" not in server.asked


async def test_an_older_crd_lets_a_start_read_all_jobs_at_once() -> None:
    server = EndedAndOthers(selects=False)
    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        assert set(parts.store.job_keys()) == {DEMO, YOUNG}
        await parts.informer.fill()
        assert parts.informer.filled


async def test_a_seed_that_is_repeated_forgets_what_is_gone() -> None:
    server = EndedAndOthers()
    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        server.young = {**server.young, "metadata": {**server.young["metadata"], "name": "new", "uid": "n"}}
        await parts.informer.seed()
        assert parts.store.job_keys() == [("team", "new")]


async def test_jobs_that_have_ended_are_read_again_soon_if_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = EndedAndOthers()
    server.failing = {ENDED}
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        if rests.count(FILL_DELAY) == 2:
            server.failing.clear()
        if seconds == 3600:
            raise asyncio.CancelledError

    async with api_server.serving(server) as api:
        parts = Parts(api)
        await parts.informer.seed()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "sleep", rest)
            with pytest.raises(asyncio.CancelledError):
                await parts.informer.resynchronize(3600)
    assert rests == [0, FILL_DELAY, 0, FILL_DELAY, 0, 3600]
    assert DEMO in parts.store.job_keys()


async def test_a_refused_namespace_does_not_keep_ended_jobs_of_others_away() -> None:
    refused: set[str] = set()
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        namespace = request.path.split("namespaces/")[1].split("/")[0] if "namespaces" in request.path else ""
        if request.query.get("fieldSelector") == ENDED:
            asked.append(namespace)
        if namespace in refused:
            return api_server.failure(403)
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": []})

    async with listing(3, answer) as served:
        refused.add("team-0")
        await served.seed()
        refused.add("team-1")
        await served.fill()
        assert served.filled
    assert asked == ["team-1", "team-2"]


@asynccontextmanager
async def listing(namespaces: int, answer: Any) -> AsyncIterator[Informer]:
    """An informer of so many namespaces, whose API server gives this answer."""
    async with api_server.serving(answer) as api:
        parts = Parts(api)
        names = [f"team-{number}" for number in range(namespaces)]
        yield Informer(parts.store, parts.gpus, parts.queue, Cluster(api), names)


async def test_several_namespaces_are_listed_at_once_and_not_all() -> None:
    asked: list[str] = []
    listing_now: set[str] = set()
    most = 0
    enough = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal most
        if "namespaces" in request.path:
            namespace = request.path.split("namespaces/")[1].split("/")[0]
            asked.append(namespace)
            listing_now.add(namespace)
            most = max(most, len(listing_now))
            if most == LISTED_AT_ONCE:
                enough.set()
            # One after the other, they would never be enough.
            await asyncio.wait_for(enough.wait(), 20)
            if request.path.endswith("persistentvolumeclaims"):
                listing_now.discard(namespace)
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": []})

    async with listing(3 * LISTED_AT_ONCE + 1, answer) as informer:
        await informer.synchronize()
        assert informer.seeded
        assert informer.listed.take("/api/v1/namespaces/team-3/pods") == 50
    assert most == LISTED_AT_ONCE
    assert {namespace: asked.count(namespace) for namespace in asked} == dict.fromkeys(informer.namespaces, 4)


async def test_a_namespace_that_fails_ends_the_whole_list_and_a_refused_one_does_not() -> None:
    status = 403
    asked: set[str] = set()

    async def answer(request: web.Request) -> web.Response:
        asked.add(request.path)
        if "team-1/" in request.path:
            return api_server.failure(status)
        return web.json_response({"metadata": {"resourceVersion": "50"}, "items": []})

    async with listing(20, answer) as informer:
        await informer.synchronize()
        assert set(informer.refused) == {"team-1"}
        assert informer.listed.take("/api/v1/namespaces/team-1/pods") is None
        status = 400
        asked.clear()
        with pytest.raises(ApiError):
            await informer.synchronize()
        before = len(asked)
        await asyncio.sleep(0.05)
        assert len(asked) == before, "nothing goes on behind the error"
