from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.image_pulls import (
    DENIED_SECONDS,
    RETRY_SECONDS,
    ROUND_REQUESTS,
    ROUND_SECONDS,
    TRIES,
    ImagePullReader,
)
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import Pod

from tests.support.api_server import failure, serving
from tests.support.clock import Clock
from tests.support.operator import NOW, make_job
from tests.support.world import started

IMAGE = "registry.example.com/trainer:1"


class Events:
    """An API server that has Events about pulls only, and a reader of them."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.asked: list[str] = []
        self.status = 200
        self.clock = Clock()
        self.store = Store(GpuStore((), allow_time_slicing=False))
        self.reader: ImagePullReader

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a LIST of the Events about one pod."""
        terms = dict(term.split("=") for term in request.query["fieldSelector"].split(","))
        assert terms["reason"] == "Pulled"
        uid = terms["involvedObject.uid"]
        self.asked.append(uid)
        if self.status != 200:
            return failure(self.status, "cannot list events")
        items = [
            {"involvedObject": {"uid": uid}, "type": "Normal", "reason": "Pulled", "message": self.messages[uid]}
        ] if uid in self.messages else []  # fmt: skip
        return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})

    def add_pod(self, name: str = "demo", *, seconds: float = 60, **status: Any) -> Pod:
        """A FineTuneJob whose TRAIN started some seconds after its pod got a node."""
        world = started(Stage.TRAIN)
        start = NOW + timedelta(seconds=seconds)
        pod = replace(world.run_pod("demo-train-0", scheduled=NOW, started=start), uid=f"pod-{name}")
        job = make_job(name=name, uid=f"uid-{name}", status={**world.job.status, **status})
        child = replace(world.children["demo-train-0"], uid=f"job-{name}", owner_uid=job.uid, image=IMAGE)
        self.store.put_job(job)
        self.store.put_child(job.key, child)
        self.store.put_pod(job.key, replace(pod, owner_uid=child.uid))
        return pod

    def seconds(self, name: str = "demo") -> list[float]:
        """The times that a decision about this job sees."""
        observation = self.store.observe(("team", name))
        assert observation is not None
        return list(observation.image_pulls.values())

    async def rounds(self, seconds: float) -> None:
        """Let the reader work for this time."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            await self.reader.read_round()
            self.clock.now += ROUND_SECONDS


@asynccontextmanager
async def reading() -> AsyncIterator[Events]:
    """A reader and its API server."""
    events = Events()
    async with serving(events.answer) as api:
        events.reader = ImagePullReader(events.store, Cluster(api), events.clock)
        yield events


def pulled(times: str) -> str:
    return f'Successfully pulled image "{IMAGE}" in {times}'


async def test_a_pull_is_read_once() -> None:
    async with reading() as events:
        pod = events.add_pod()
        events.messages[pod.uid] = pulled("51.5s (52.5s including waiting).")
        await events.rounds(600)
        assert events.seconds() == [52.5]
        assert events.asked == [pod.uid]


async def test_a_late_event_is_found_and_a_missing_one_is_given_up() -> None:
    async with reading() as events:
        late, missing = events.add_pod("late"), events.add_pod("missing")
        await events.rounds(RETRY_SECONDS / 2)
        events.messages[late.uid] = pulled("2s")
        await events.rounds(600)
        assert (events.seconds("late"), events.seconds("missing")) == ([2.0], [])
        assert events.asked.count(missing.uid) == TRIES


async def test_a_pod_that_started_at_once_is_not_asked_about() -> None:
    async with reading() as events:
        events.add_pod(seconds=2)
        await events.rounds(60)
        assert events.asked == []


async def test_a_time_that_another_replica_recorded_is_not_read_again() -> None:
    async with reading() as events:
        stage = {"name": "Train", "attempt": 0, "jobName": "demo-train-0", "imagePullSeconds": 9}
        events.add_pod(stage=stage)
        await events.rounds(60)
        assert events.asked == []


async def test_many_pods_share_the_requests_of_a_round() -> None:
    async with reading() as events:
        pods = [events.add_pod(f"demo{number}") for number in range(3 * ROUND_REQUESTS)]
        events.messages = {pod.uid: pulled("1s") for pod in pods}
        await events.reader.read_round()
        assert len(events.asked) == ROUND_REQUESTS
        await events.rounds(60)
        assert sorted(events.asked) == sorted(pod.uid for pod in pods)


@pytest.mark.parametrize(("status", "requests"), [(403, 2), (500, 4 * TRIES)])
async def test_a_refusal_ends_in_few_requests(status: int, requests: int) -> None:
    # The client itself repeats a request of a server that fails.
    async with reading() as events:
        events.add_pod()
        events.status = status
        await events.rounds(DENIED_SECONDS + 60)
        assert len(events.asked) == requests
        assert events.seconds() == []


async def test_what_is_known_about_pods_that_are_gone_is_dropped() -> None:
    async with reading() as events:
        first = events.add_pod()
        events.messages[first.uid] = pulled("1s")
        await events.rounds(10)
        events.store.remove_pod(("team", "demo"), first.uid)
        (entry,) = events.store.busy()
        second = replace(first, uid="pod-second", owner_uid="job-demo", resource_version="999")
        events.store.put_pod(("team", "demo"), second)
        events.messages[second.uid] = pulled("2s")
        await events.rounds(10)
        assert entry.image_pulls == {second.uid: 2.0}
