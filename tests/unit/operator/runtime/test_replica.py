"""The order of a replica's parts on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.leader_election import Elector
from finetune_operator.cluster.resources import JOB_SETS_GROUP_PATH, NODES_PATH, job_sets_path, jobs_path
from finetune_operator.runtime.health import Role, liveness, readiness
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.replica import SPARE_WORKERS, Edges, Replica
from finetune_operator.settings import LeaderElectionSettings, Settings
from prometheus_client import CollectorRegistry

from tests.support.api_server import ObjectServer, failure
from tests.support.operator import NOW, SETTINGS, make_spec
from tests.support.virtual_time import VirtualApi, VirtualLoop, run_virtual, wall_clock

LEASES = "/apis/coordination.k8s.io/v1/namespaces/system/leases"
ALONE = SETTINGS.model_copy(update={"leader_election": LeaderElectionSettings(enabled=False)})


async def watch(_informer: Informer) -> None:
    """Nothing changes."""
    await asyncio.Event().wait()


async def fetch(_ip: str, _port: int) -> bytes | None:
    """No trainer runs."""
    return None


class LeaseServer(ObjectServer):
    """An API server that replaces Leases."""

    def respond(self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any]) -> web.Response:
        if method != "PUT" or method in {name for name, _ in self.failures}:
            return super().respond(method, path, query, body)
        self.requests.append((method, path))
        if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            return failure(409)
        return web.json_response(self.put(path.rpartition("/")[0], body))

    def writes(self) -> list[tuple[str, str]]:
        """The requests that write anything but the Lease."""
        return [(m, path) for m, path in self.requests if m != "GET" and not path.startswith(LEASES)]


class Running:
    """A replica that runs on a virtual loop."""

    def __init__(self, loop: VirtualLoop, server: ObjectServer, settings: Settings) -> None:
        self.replica = Replica(
            settings, OperatorMetrics(CollectorRegistry()), loop.time, identity="me", namespace="system"
        )
        self.aborted = False
        edges = Edges(
            api=VirtualApi(server, loop, latency=1.0),
            fetch=fetch,
            watch=watch,
            abort=self._abort,
            now=wall_clock(loop, NOW),
        )
        self._stop = asyncio.Event()
        self._task = asyncio.ensure_future(self.replica.run(edges, self._stop))

    def _abort(self) -> None:
        self.aborted = True

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(600):
            if condition():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the condition must become true within a minute")

    async def end(self) -> None:
        self._stop.set()
        await self._task


def test_a_replica_alone_is_ready_after_its_store_is_filled() -> None:
    async def main(loop: VirtualLoop) -> None:
        running = Running(loop, ObjectServer(), ALONE)
        replica = running.replica
        assert readiness(replica.vitals()) == ("the replica neither leads nor stands by yet",)
        await running.until(lambda: replica.vitals().role is Role.LEADER)
        assert readiness(replica.vitals()) == ("the store is still being filled",)
        await running.until(lambda: replica.vitals().seeded)
        assert readiness(replica.vitals()) == ()
        assert replica.vitals().lease_age is None
        await asyncio.sleep(3600)
        assert liveness(replica.vitals()) == ()
        await running.end()

    run_virtual(main)


@pytest.mark.parametrize(
    ("path", "status"),
    [*((jobs_path(), status) for status in (401, 403, 409, 410, 500, 503)), (NODES_PATH, 401)],
)
def test_a_start_waits_until_the_api_server_lists_everything(path: str, status: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        server.failures["GET", path] = status
        running = Running(loop, server, ALONE)
        await asyncio.sleep(600)
        assert not running.replica.vitals().seeded
        assert liveness(running.replica.vitals()) == ()
        assert 60 <= server.requests.count(("GET", path)) <= 600
        server.failures.clear()
        await running.until(lambda: running.replica.vitals().seeded)
        await running.end()

    run_virtual(main)


@pytest.mark.parametrize("installed", [True, False])
def test_job_sets_are_used_only_where_they_are_installed(
    installed: bool,  # noqa: FBT001 -- a parameter of the table
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        if installed:
            server.objects[JOB_SETS_GROUP_PATH] = {"metadata": {"name": "", "labels": {}}}
        running = Running(loop, server, ALONE.model_copy(update={"job_sets": True}))
        await running.until(lambda: running.replica.vitals().seeded)
        assert running.replica.job_sets is installed
        assert (("GET", job_sets_path()) in server.requests) is installed
        assert ("install JobSet" in caplog.text) is not installed
        await running.end()

    run_virtual(main)


def test_a_standby_is_ready_and_has_no_lease() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        running = Running(loop, server, SETTINGS)
        replica = running.replica

        def renew() -> None:
            spec = {"holderIdentity": "another", "leaseDurationSeconds": 15, "renewTime": str(loop.time())}
            server.put(LEASES, {"metadata": {"name": "finetune-operator"}, "spec": spec})

        for _ in range(60):
            renew()
            await asyncio.sleep(5)
        assert replica.vitals().role is Role.STANDBY
        assert replica.vitals().lease_age is None
        assert readiness(replica.vitals()) == liveness(replica.vitals()) == ()
        await running.end()

    run_virtual(main)


def add_jobs(server: ObjectServer, count: int) -> None:
    for number in range(count):
        metadata = {"name": f"demo{number}", "namespace": "team"}
        server.put(jobs_path("team"), {"metadata": metadata, "spec": make_spec()})


def test_a_leader_that_was_stopped_beyond_its_lease_wakes_without_a_write() -> None:
    """The stop comes between any two steps of the loop, with writes in the queue, the rate limit and on their way."""

    async def main(loop: VirtualLoop) -> None:
        server = LeaseServer()
        add_jobs(server, 200)
        running = Running(loop, server, SETTINGS.model_copy(update={"watch_namespaces": ("team",)}))
        await running.until(lambda: len(server.writes()) > 100)
        assert running.replica.vitals().role is Role.LEADER
        loop._virtual.now += 60
        stopped = len(server.writes())
        await asyncio.sleep(30)
        assert running.aborted, "the process ends as soon as it notices"
        assert len(server.writes()) - stopped <= SETTINGS.workers + SPARE_WORKERS + 1, "they had been sent"
        before = server.writes()
        await asyncio.sleep(30)
        assert server.writes() == before
        await running.end()

    run_virtual(main)


def test_a_leader_whose_renewals_fail_for_an_unknown_reason_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold(_elector: Elector) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(Elector, "hold", hold)

    async def main(loop: VirtualLoop) -> None:
        running = Running(loop, LeaseServer(), SETTINGS)
        await running.until(lambda: running.aborted)
        await running.end()

    run_virtual(main)
