"""One replica of the operator without its process: it waits for the Lease, fills its store, and then leads."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.event_writer import EventWriter
from finetune_operator.cluster.image_pulls import ImagePullReader
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.leader_election import Elector
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.progress_poller import Fetch, ProgressPoller
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.watch_ages import WatchAges
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.errors import ApiError, LeaseLostError
from finetune_operator.observed.observation import Key
from finetune_operator.observed.pod_address import OperatorPod
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.controller import Controller, run_workers
from finetune_operator.runtime.health import Role, Vitals
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.settings import Settings

STOP_SECONDS = 5.0
SEED_DELAY = 1.0
LONGEST_SEED_DELAY = 5.0
QUIET_SECONDS = 60.0
SPARE_WORKERS = 2
"""Workers that one namespace cannot occupy, so that another one never waits for its slow requests."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edges:
    """Everything outside of a replica: the API server, the trainers, the process and the wall clock."""

    api: ApiClient
    fetch: Fetch
    watch: Callable[[Informer], Coroutine[Any, Any, None]]
    """Feeds the informer until canceled. If it ends before that, it raises an error."""
    abort: Callable[[], None]
    """Ends the process at once, without any cleanup."""
    now: Callable[[], datetime]
    """The wall clock in UTC."""


class Replica:
    """The parts of one replica, and their order.

    If any part fails, the whole process ends and Kubernetes restarts it. No state is lost, because all of it is in the
    cluster.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: OperatorMetrics,
        clock: Callable[[], float],
        *,
        identity: str,
        namespace: str,
        own: OperatorPod | None = None,
    ) -> None:
        """`identity`, `namespace` and `own` are those of the replica's own pod. `clock` is monotonic, in seconds."""
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._identity = identity
        self._namespace = namespace
        self._own = own or OperatorPod()
        self.gpus = GpuStore(settings.gpu_profiles, allow_time_slicing=settings.allow_time_slicing)
        self.store = Store(self.gpus, metrics.fleet.changed)
        self.activities = Activities(self.store)
        """What the trainers have reported to this replica while it led."""
        self.queue: WorkQueue[Key] = WorkQueue(metrics, clock, group_of=itemgetter(0), share=settings.workers)
        metrics.workers(settings.workers + SPARE_WORKERS, lambda: self.queue.longest_work)
        self._role = Role.STARTING
        self._seeded = False
        self._elector: Elector | None = None
        self._informer: Informer | None = None
        self.job_sets = False
        """JobSets are used, and watched."""
        self.watch_ages = WatchAges(clock)
        """The time for which each watch has been silent."""

    async def run(self, edges: Edges, stop: asyncio.Event) -> None:
        """Lead until `stop` is set, after an election if one is enabled. Raises the error of a part that failed."""
        if not self._settings.leader_election.enabled:
            await _until(stop, asyncio.create_task(self._lead(edges)))
            return
        lease = self._settings.leader_election.lease_name
        elector = self._elector = Elector(
            edges.api, self._namespace, lease, self._identity, self._clock, edges.api.fence
        )
        self._role = Role.STANDBY
        self._metrics.leads(lease, leading=False)
        acquiring = asyncio.create_task(elector.acquire())
        await _until(stop, acquiring)
        if acquiring.cancelled():
            return
        self._metrics.leads(lease, leading=True)
        holding = asyncio.create_task(_hold(elector, edges))
        try:
            await _until(stop, asyncio.create_task(self._lead(edges)))
        finally:
            await cancel(holding)
            try:
                await elector.release()
            except ApiError as error:
                _logger.warning("the Lease was not released; it will expire: %s", error)

    async def _lead(self, edges: Edges) -> None:
        """Run the leader's parts until canceled."""
        self._role = Role.LEADER
        cluster = Cluster(edges.api)
        settings = await self._find_job_sets(cluster)
        events = EventWriter(
            edges.api,
            self._identity or "finetune-operator",
            self._metrics,
            edges.now,
            self._clock,
            self.store.has_job,
        )
        informer = Informer(self.store, self.gpus, self.queue, cluster, settings.watch_namespaces)
        self._informer = informer
        controller = Controller(
            store=self.store,
            queue=self.queue,
            cluster=cluster,
            informer=informer,
            settings=settings,
            metrics=self._metrics,
            record_event=events.record,
            forget_events=events.forget,
            now=edges.now,
            clock=self._clock,
        )
        poller = ProgressPoller(
            self.store,
            lambda: self.gpus.inventory,
            self.queue.add,
            edges.fetch,
            self._metrics,
            self._clock,
            edges.now,
            random.Random(secrets.randbits(64)).random,  # noqa: S311 -- jitter, not a secret
            port=settings.trainer.telemetry_port,
            period=settings.progress_seconds,
            own=self._own,
            remember=lambda job, progress: self.activities.report(job.uid, progress),
        )
        # Without this, a job could be decided before its children are known.
        await self._seed(informer, cluster)
        self._seeded = True
        _logger.info("leading; %d FineTuneJobs", len(self.store.job_keys()))
        async with asyncio.TaskGroup() as parts:
            parts.create_task(run_workers(controller, settings.workers + SPARE_WORKERS))
            parts.create_task(informer.resynchronize(settings.resync_seconds))
            parts.create_task(poller.run())
            parts.create_task(events.run())
            parts.create_task(controller.warnings.run())
            parts.create_task(ImagePullReader(self.store, cluster, self._clock).run())
            parts.create_task(edges.watch(informer))

    async def _find_job_sets(self, cluster: Cluster) -> Settings:
        """Return the settings as the cluster allows them: without JobSet, nothing uses it until the next start."""
        if not self._settings.job_sets:
            return self._settings
        await self._persist(cluster.find_job_sets, cluster)
        if not cluster.job_sets:
            _logger.warning(
                "jobSets: true needs JobSet (jobset.x-k8s.io/v1alpha2), but the cluster has none; TRAIN with several pods is "
                "a Job; install JobSet and restart the operator"
            )
        self.job_sets = cluster.job_sets
        return self._settings.model_copy(update={"job_sets": cluster.job_sets})

    async def _seed(self, informer: Informer, cluster: Cluster) -> None:
        """Read what decisions need, however long the API server fails: an end of the process would only repeat the lists."""
        await self._persist(informer.seed, cluster)

    async def _persist(self, read: Callable[[], Awaitable[object]], cluster: Cluster) -> None:
        delay, said = SEED_DELAY, float("-inf")
        while True:
            try:
                await read()
            except ApiError as error:
                if self._clock() - said >= QUIET_SECONDS:
                    said = self._clock()
                    _logger.warning("the store must be filled before anything is decided: %s", error)
            else:
                return
            await asyncio.sleep(delay)
            await cluster.await_server()
            delay = min(2 * delay, LONGEST_SEED_DELAY)

    def vitals(self) -> Vitals:
        """What shows if this replica works, without the event loop's lag."""
        renewed = None if self._elector is None else self._elector.renewed
        return Vitals(
            role=self._role,
            seeded=self._seeded,
            filled=self._informer is not None and self._informer.filled,
            longest_work=self.queue.longest_work,
            watches=self.watch_ages.ages(),
            namespaces={} if self._informer is None else self._informer.served,
            lease_age=None if renewed is None else self._clock() - renewed,
        )


async def _hold(elector: Elector, edges: Edges) -> None:
    try:
        await elector.hold()
    except LeaseLostError as error:
        # Another replica may lead from now on, so nothing may be written any more, not even during cleanup.
        _logger.critical("%s", error)
        edges.abort()
    except Exception:
        # A leader that does not renew must not stay.
        _logger.critical("the Lease is not renewed any more", exc_info=True)
        edges.abort()


async def _until(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Wait for `task`, or cancel it when `stop` is set. Raises the task's error."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(stopping)
    if task.done():
        task.result()
    else:
        await cancel(task)


async def cancel(task: asyncio.Task[bool] | asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended, at most STOP_SECONDS."""
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_SECONDS)
