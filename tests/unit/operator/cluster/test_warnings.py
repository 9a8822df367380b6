from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.api.formats import format_time
from finetune_operator.api.stages import JOB_SET, Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.warnings import ROUND_REQUESTS, ROUND_SECONDS, WarningReader
from finetune_operator.observed.observation import ChildJob, Key, Pod

from tests.support.api_server import failure, serving
from tests.support.clock import Clock
from tests.support.operator import NOW, make_job
from tests.support.world import started

KEY = ("team", "demo")


def event(uid: str, reason: str, message: str, seconds: float = 1) -> dict[str, Any]:
    """An Event of the kubelet or the Job controller."""
    return {
        "involvedObject": {"uid": uid, "kind": "Pod"},
        "type": "Normal" if reason == "Pulling" else "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": format_time(NOW + timedelta(seconds=seconds)),
    }


class Events:
    """An API server with Events only, and a reader of them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        self.clock = Clock()
        self.store = Store(GpuStore((), allow_time_slicing=False))
        self.woken: list[Key] = []
        self.child = replace(started(Stage.TRAIN).children["demo-train-0"], created=NOW)
        self.reader: WarningReader

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a LIST with a field selector, in one page."""
        fields = request.query["fieldSelector"]
        self.asked.append((request.path.split("/")[4], fields))
        if self.status != 200:
            return failure(self.status, "cannot list events")
        wanted = dict(term.split("=") for term in fields.split(","))
        items = [each for each in self.events if _selects(wanted, each)]
        return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})

    def add_job(self, number: int, namespace: str = "team") -> ChildJob:
        """A FineTuneJob whose Job was created at NOW and has no pod."""
        child = replace(self.child, uid=f"job-{namespace}-{number}")
        job = make_job(namespace=namespace, name=f"demo{number}", uid=f"uid-{namespace}-{number}")
        self.store.put_job(job)
        self.store.put_child(job.key, replace(child, owner_uid=job.uid))
        return child

    def add_pod(self, **changes: Any) -> Pod:
        """A FineTuneJob of which a pod got its node at NOW."""
        world = started(Stage.TRAIN)
        pod = world.run_pod("demo-train-0", phase="Pending", running=False, scheduled=NOW, **changes)
        self.store.put_job(world.job)
        self.store.put_child(KEY, world.children["demo-train-0"])
        self.store.put_pod(KEY, pod)
        return pod

    async def rounds(self, seconds: float) -> None:
        """Let the reader work for this time."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            await self.reader.read_round()
            self.clock.now += ROUND_SECONDS


def _selects(wanted: Mapping[str, str], each: Mapping[str, Any]) -> bool:
    present = {
        "involvedObject.uid": each["involvedObject"]["uid"],
        "involvedObject.kind": each["involvedObject"]["kind"],
        "involvedObject.name": each["involvedObject"].get("name", ""),
        "type": each["type"],
        "reason": each["reason"],
    }
    return all(present[name] == value for name, value in wanted.items())


@asynccontextmanager
async def reading() -> AsyncIterator[Events]:
    """A reader whose clock begins well after NOW."""
    events = Events()
    async with serving(events.answer) as api:
        events.reader = WarningReader(
            events.store,
            Cluster(api),
            events.woken.append,
            lambda: NOW + timedelta(seconds=5 + events.clock.now),
            events.clock,
        )
        yield events


async def test_a_volume_that_is_missing_wakes_the_job_once() -> None:
    async with reading() as events:
        pod = events.add_pod()
        events.events = [event(pod.uid, "FailedMount", 'configmap "rows" not found')]
        await events.rounds(60)
        observation = events.store.observe(KEY)
        assert observation is not None
        assert observation.warnings == {pod.uid: 'FailedMount: configmap "rows" not found'}
        assert events.woken == [KEY]
        assert len(events.asked) == 2, "a known cause is read rarely"


async def test_a_cause_that_shows_late_is_known_within_ten_seconds() -> None:
    async with reading() as events:
        pod = events.add_pod()
        await events.rounds(120)
        events.events = [event(pod.uid, "FailedMount", "m", 125)]
        await events.rounds(8)
        assert events.woken == [KEY]


async def test_a_cause_that_has_ended_is_forgotten() -> None:
    async with reading() as events:
        pod = events.add_pod()
        events.events = [event(pod.uid, "FailedMount", "m")]
        await events.rounds(4)
        events.events.append(event(pod.uid, "Pulling", "image", 9))
        await events.rounds(40)
        observation = events.store.observe(KEY)
        assert observation is not None
        assert observation.warnings == {}
        assert events.woken == [KEY, KEY]


async def test_a_pod_that_pulls_its_image_is_read_rarely() -> None:
    async with reading() as events:
        pod = events.add_pod()
        events.events = [event(pod.uid, "Pulling", "image")]
        await events.rounds(60)
        assert len(events.asked) == 2
        assert events.woken == []


async def test_a_cause_of_the_wait_for_a_node_ends_with_the_node() -> None:
    async with reading() as events:
        pod = events.add_pod(node="", resource_version="200")
        events.events = [event(pod.uid, "FailedScheduling", "m")]
        await events.rounds(4)
        assert events.store.warning(KEY, pod.uid) == "FailedScheduling: m"
        scheduled = NOW + timedelta(seconds=6)
        events.store.put_pod(KEY, replace(pod, node="node1", scheduled=scheduled, resource_version="201"))
        events.clock.now += 2
        await events.rounds(2)
        assert events.store.warning(KEY, pod.uid) == ""


async def test_a_thousand_jobs_over_quota_share_their_requests() -> None:
    async with reading() as events:
        for number in range(1000):
            child = events.add_job(number)
            events.events.append(event(child.uid, "FailedCreate", "exceeded quota"))
        alone = events.add_job(0, namespace="other")
        events.events.append(event(alone.uid, "FailedCreate", "violates PodSecurity"))
        await events.rounds(4)
        assert len(events.woken) == 1001
        assert len(events.asked) <= 3 + 2
        assert events.store.warning(("other", "demo0"), alone.uid) == "FailedCreate: violates PodSecurity"


@pytest.mark.parametrize("jobs", [1, 9], ids=["by name", "shared"])
async def test_a_quota_shows_at_the_job_that_a_job_set_made(jobs: int) -> None:
    async with reading() as events:
        children = []
        for number in range(jobs):
            events.child = replace(events.child, kind=JOB_SET, name=f"demo{number}-train-0")
            children.append(events.add_job(number))
        refused = event("unknown", "FailedCreate", "exceeded quota: gpus", 4)
        refused["involvedObject"] = {"uid": "unknown", "kind": "Job", "name": "demo0-train-0-r-0"}
        events.events = [refused]
        await events.rounds(4)
        known = {
            number: events.store.warning(("team", f"demo{number}"), child.uid)
            for number, child in enumerate(children)
        }
        assert known == {0: "FailedCreate: exceeded quota: gpus", **dict.fromkeys(range(1, jobs), "")}


async def test_requests_are_bounded_and_namespaces_take_turns() -> None:
    async with reading() as events:
        for number in range(100):
            events.add_job(0, namespace=f"team{number}")
        await events.rounds(20)
        assert len(events.asked) == 10 * ROUND_REQUESTS
        assert len({namespace for namespace, _ in events.asked}) == 100


async def test_without_permission_events_are_asked_for_rarely(caplog: pytest.LogCaptureFixture) -> None:
    async with reading() as events:
        events.add_pod()
        events.status = 403
        await events.rounds(300)
        assert len(events.asked) == 1
        assert await events.reader.read(KEY) == {}
    assert caplog.text.count("events must be listed") == 2


async def test_a_decision_that_needs_the_causes_reads_them_now() -> None:
    async with reading() as events:
        pod = events.add_pod()
        await events.rounds(2)
        events.events = [event(pod.uid, "FailedMount", "m")]
        assert await events.reader.read(KEY) == {pod.uid: "FailedMount: m"}
        assert events.woken == []
        events.status = 403
        assert await events.reader.read(KEY) == {pod.uid: "FailedMount: m"}, "the last known ones"
