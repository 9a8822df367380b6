"""Two tenants of one operator on virtual time: one with many refused jobs, and one with a single job."""

from __future__ import annotations

import asyncio
from collections import Counter
from operator import itemgetter

import pytest
from finetune_operator.cluster.event_writer import EventWriter
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster, batch_jobs_path, claims_path, events_path, jobs_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.controller import Controller, run_workers
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.replica import SPARE_WORKERS
from prometheus_client import CollectorRegistry

from tests.support.api_server import ObjectServer
from tests.support.operator import NOW, SETTINGS, make_node, make_spec
from tests.support.virtual_time import VirtualApi, VirtualLoop, run_virtual, wall_clock

QUOTA = "exceeded quota: q, requested: persistentvolumeclaims=1, used: persistentvolumeclaims=5, limited: 5"


class Tenants:
    """The operator's shell with its default limits, without watches."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.server = ObjectServer()
        self.api = VirtualApi(self.server, loop, qps=SETTINGS.client.qps, burst=SETTINGS.client.burst)
        gpus = GpuStore((), allow_time_slicing=False)
        gpus.put(make_node())
        self.store = Store(gpus)
        metrics = OperatorMetrics(CollectorRegistry())
        self.queue: WorkQueue[Key] = WorkQueue(
            metrics, loop.time, group_of=itemgetter(0), share=SETTINGS.workers
        )
        cluster = Cluster(self.api)
        events = EventWriter(
            self.api, "replica", metrics, wall_clock(loop, NOW), loop.time, self.store.has_job
        )
        self.informer = Informer(self.store, gpus, self.queue, cluster, "")
        controller = Controller(
            store=self.store,
            queue=self.queue,
            cluster=cluster,
            informer=self.informer,
            settings=SETTINGS,
            metrics=metrics,
            record_event=events.record,
            forget_events=events.forget,
            now=wall_clock(loop, NOW),
            clock=loop.time,
        )
        self.tasks = [
            asyncio.ensure_future(run_workers(controller, SETTINGS.workers + SPARE_WORKERS)),
            asyncio.ensure_future(events.run()),
        ]

    def create(self, namespace: str, name: str) -> None:
        """Create a FineTuneJob, as a user would."""
        body = {
            "metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"},
            "spec": make_spec(),
        }
        self.informer.wake(self.informer.put_job(self.server.put(jobs_path(namespace), body)))

    def refuse_claims(self, namespace: str) -> None:
        """Refuse every claim of a namespace for its quota."""
        self.server.failures["POST", claims_path(namespace)] = 403
        self.server.messages["POST", claims_path(namespace)] = QUOTA

    async def reread(self) -> None:
        """Let the store see which children are gone, as a watch would."""
        for key in self.store.job_keys():
            await self.informer.refresh(key, wall_clock(self.loop, NOW)())

    async def seconds_to_start(self, namespace: str, name: str) -> float:
        """Seconds from the creation of a FineTuneJob to that of its first Job."""
        begin = self.loop.time()
        self.create(namespace, name)
        while f"{batch_jobs_path(namespace)}/{name}-prepare-0" not in self.server.objects:  # noqa: ASYNC110 -- a poll on virtual time
            await asyncio.sleep(0.001)
        return self.loop.time() - begin

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await self.api.close()


async def start_beside(loop: VirtualLoop, refused: int) -> tuple[float, float, Counter[tuple[str, str]]]:
    """Start two jobs of tenant b beside `refused` jobs of tenant a.

    One comes 2 s after them and one 10 min after them. The third value are the requests of the hour after that.
    """
    tenants = Tenants(loop)
    tenants.refuse_claims("a")
    for number in range(refused):
        tenants.create("a", f"job-{number}")
    await asyncio.sleep(2)
    await tenants.reread()
    amid = await tenants.seconds_to_start("b", "first")
    await asyncio.sleep(600)
    after = await tenants.seconds_to_start("b", "second")
    del tenants.server.requests[:]
    await asyncio.sleep(3600)
    await tenants.close()
    return amid, after, Counter(tenants.server.requests)


@pytest.mark.parametrize("refused", [150, pytest.param(1000, marks=pytest.mark.full)])
def test_a_neighbor_of_many_refused_jobs_starts_as_fast_as_alone(refused: int) -> None:
    alone, _, _ = run_virtual(lambda loop: start_beside(loop, 0))
    amid, after, requests = run_virtual(lambda loop: start_beside(loop, refused))
    assert amid <= 1.5 * alone, (amid, alone)
    assert after <= 1.5 * alone, (after, alone)
    assert requests["POST", claims_path("a")] <= 20, "one probe for all, at most every 4 minutes"
    theirs = sum(count for (_, path), count in requests.items() if "/namespaces/a/" in path)
    assert theirs <= 60, "refused jobs read and write nothing meanwhile"


async def start_without_events(loop: VirtualLoop, failures: dict[tuple[str, str], int]) -> list[float]:
    """Seconds until each of 50 jobs in a row starts."""
    tenants = Tenants(loop)
    tenants.server.failures.update(failures)
    seconds = [await tenants.seconds_to_start("b", f"job-{number}") for number in range(50)]
    await tenants.close()
    return seconds


@pytest.mark.parametrize("status", [403, 429, 503])
def test_an_api_server_that_takes_no_events_delays_no_job(status: int) -> None:
    usual = run_virtual(lambda loop: start_without_events(loop, {}))
    refused = {("POST", events_path("b")): status}
    assert run_virtual(lambda loop: start_without_events(loop, refused)) == pytest.approx(usual, abs=0.01)


def test_jobs_start_soon_after_their_quota_is_freed() -> None:
    async def main(loop: VirtualLoop) -> tuple[float, int]:
        tenants = Tenants(loop)
        tenants.refuse_claims("a")
        for number in range(40):
            tenants.create("a", f"job-{number}")
        await asyncio.sleep(2)
        await tenants.reread()
        await asyncio.sleep(598)
        tenants.server.failures.clear()
        begin = loop.time()
        path = batch_jobs_path("a")

        def started() -> int:
            return sum(key.startswith(path) for key in tenants.server.objects)

        while started() < 40 and loop.time() < begin + 900:  # noqa: ASYNC110 -- a poll on virtual time
            await asyncio.sleep(1)
        seconds = loop.time() - begin
        await tenants.close()
        return seconds, started()

    seconds, count = run_virtual(main)
    assert count == 40
    assert seconds <= 360 + 30, "the longest delay, then all at once"
