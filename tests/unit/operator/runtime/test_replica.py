"""The order of a replica's parts on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from finetune_operator.cluster.informer import Informer
from finetune_operator.runtime.health import Role, liveness, readiness
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.replica import Edges, Replica
from finetune_operator.settings import LeaderElectionSettings, Settings
from prometheus_client import CollectorRegistry

from tests.support.api_server import ObjectServer
from tests.support.operator import NOW, SETTINGS
from tests.support.virtual_time import VirtualApi, VirtualLoop, run_virtual, wall_clock

LEASES = "/apis/coordination.k8s.io/v1/namespaces/system/leases"
ALONE = SETTINGS.model_copy(update={"leader_election": LeaderElectionSettings(enabled=False)})


async def watch(_informer: Informer) -> None:
    """Nothing changes."""
    await asyncio.Event().wait()


async def fetch(_ip: str, _port: int) -> bytes | None:
    """No trainer runs."""
    return None


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
