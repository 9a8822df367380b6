from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster, jobs_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.status_writer import MEMORY, StatusWriter
from finetune_operator.status.events import Transition
from prometheus_client import CollectorRegistry

from tests.support.api_server import ObjectServer, serving
from tests.support.clock import Clock
from tests.support.operator import NOW, make_spec

KEY = ("team", "demo")
ATTEMPTS = [{"stage": "Train", "attempt": 0, "outcome": "Failed"}]


class StrictServer(ObjectServer):
    """Refuses a status with a member of `refused`, as an API server with another CRD would."""

    def __init__(self, *refused: str) -> None:
        super().__init__()
        self.refused = set(refused)
        self.rejections = 0

    def _patch(self, path: str, body: dict[str, Any]) -> web.Response:
        held = self.objects[path.removesuffix("/status")].get("status", {})
        found = [
            name for name in self.refused if name in body["status"] and held.get(name) != body["status"][name]
        ]
        if not found:
            return super()._patch(path, body)
        self.rejections += 1
        causes = [{"field": f"status.{name}", "message": "no"} for name in found]
        answer = {"reason": "Invalid", "message": f"{found[0]} is invalid", "details": {"causes": causes}}
        return web.json_response(answer, status=422)


class Parts:
    def __init__(self, server: StrictServer, cluster: Cluster) -> None:
        self.server = server
        gpus = GpuStore((), allow_time_slicing=False)
        self.store = Store(gpus)
        queue: WorkQueue[tuple[str, str]] = WorkQueue(OperatorMetrics(CollectorRegistry()), Clock())
        informer = Informer(self.store, gpus, queue, cluster, "")
        self.now = NOW
        self.events: list[Transition] = []
        self.writer = StatusWriter(
            cluster, informer, lambda: self.now, lambda _, event: self.events.append(event)
        )
        informer.put_job(
            server.put(
                jobs_path("team"), {"metadata": {"name": "demo", "namespace": "team"}, "spec": make_spec()}
            )
        )

    @property
    def job(self) -> JobRecord:
        observation = self.store.observe(KEY)
        assert observation is not None
        return observation.job

    async def write(self, **members: Any) -> bool:
        conditions = list(self.job.status.get("conditions") or ())
        return await self.writer.write(self.job, {**self.job.status, "conditions": conditions, **members})


@asynccontextmanager
async def running(*refused: str) -> AsyncIterator[Parts]:
    server = StrictServer(*refused)
    async with serving(server) as api:
        yield Parts(server, Cluster(api))


async def test_an_equal_status_is_not_written() -> None:
    async with running() as parts:
        assert await parts.write(stage={"name": "Train"})
        requests = len(parts.server.requests)
        assert await parts.write(stage={"name": "Train"})
        assert len(parts.server.requests) == requests


async def test_a_refused_member_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async with running("plan") as parts:
        assert await parts.write(stage={"name": "Train"}, plan={"bytes": 2**70})
        assert parts.job.status["stage"] == {"name": "Train"}
        assert "plan" not in parts.job.status
        entry = find_condition(parts.job.status, Condition.STATUS_REDUCED)
        assert entry["message"] == "status.plan: plan is invalid"
        assert [event.reason for event in parts.events] == [entry["reason"]]
        assert "Traceback" not in caplog.text
        requests = len(parts.server.requests)
        assert await parts.write(stage={"name": "Train"}, plan={"bytes": 2**70})
        assert len(parts.server.requests) == requests, "what was refused is not sent again"
        parts.server.refused.clear()
        assert await parts.write(stage={"name": "Train"}, plan={"bytes": 1})
        assert find_condition(parts.job.status, Condition.STATUS_REDUCED)["status"] == "False"


async def test_a_refused_record_stops_the_actions_but_is_said() -> None:
    async with running("attempts") as parts:
        assert not await parts.write(stage={"name": "Merge"}, attempts=ATTEMPTS)
        assert "stage" not in parts.job.status
        assert find_condition(parts.job.status, Condition.STATUS_REDUCED)["status"] == "True"
        assert not await parts.write(stage={"name": "Merge"}, attempts=ATTEMPTS)
        assert parts.server.rejections == 1
        parts.server.refused.clear()
        parts.now += MEMORY + timedelta(seconds=1)
        assert await parts.write(stage={"name": "Merge"}, attempts=ATTEMPTS), "the CRD may have changed"
        assert parts.job.status["attempts"] == ATTEMPTS


async def test_a_new_job_of_the_same_name_inherits_nothing() -> None:
    async with running("plan") as parts:
        await parts.write(plan={"bytes": 2**70})
        parts.writer.forget(KEY)
        parts.server.refused.clear()
        assert await parts.write(plan={"bytes": 2**70})
        assert parts.job.status["plan"] == {"bytes": 2**70}
