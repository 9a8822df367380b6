"""One replica of the operator: it builds the parts, starts them and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from operator import itemgetter

import kopf
from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry, disable_created_metrics

from finetune_operator.cluster.client import ApiClient, load_configuration
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.leader_election import Elector
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.progress_poller import HttpFetcher, ProgressPoller
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.watches import build_registry, build_settings
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.errors import ApiError, LeaseLostError, SettingsError
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.controller import Controller, run_workers
from finetune_operator.runtime.http_server import health_application, metrics_application, serve
from finetune_operator.runtime.metrics import GpuCollector, JobCollector, OperatorMetrics
from finetune_operator.settings import Settings

STUCK_SECONDS = 300.0
"""No healthy reconcile takes this long, because every request has a time limit and few tries."""
STOP_SECONDS = 5.0
SPARE_WORKERS = 2
"""Workers that one namespace cannot occupy, so that another one never waits for its slow requests."""

_logger = logging.getLogger(__name__)


class Operator:
    """All parts of one replica.

    It waits for the Lease, fills its store, and then runs Kopf's watches and the workers. If any part fails, the whole
    process ends and Kubernetes restarts it. No state is lost, because all of it is in the cluster.
    """

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Raises SettingsError if leader election is enabled and the pod's name or namespace is missing."""
        self._settings = settings
        self._environment = environment
        self._identity = environment.get("POD_NAME", "")
        self._namespace = environment.get("POD_NAMESPACE", "")
        if settings.leader_election.enabled and not (self._identity and self._namespace):
            raise SettingsError(
                "POD_NAME and POD_NAMESPACE must be set from the downward API if leaderElection.enabled is true, found "
                f"{self._identity!r} and {self._namespace!r}; use the Deployment of the chart, which sets them"
            )
        # A creation time for every counter would double the number of series, and no dashboard uses it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # not annotated by the library
        self._registry = CollectorRegistry()
        self._metrics = OperatorMetrics(self._registry)
        self._gpus = GpuStore(settings.gpu_profiles, allow_time_slicing=settings.allow_time_slicing)
        self._store = Store(self._gpus)
        self._registry.register(JobCollector(self._store))
        self._registry.register(GpuCollector(self._gpus))
        self._queue: WorkQueue[Key] = WorkQueue(
            self._metrics, time.monotonic, group_of=itemgetter(0), share=settings.workers
        )
        self._metrics.workers(settings.workers + SPARE_WORKERS, lambda: self._queue.longest_work)
        self._leading = False
        self._seeded = False
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises the error that ended a part before that."""
        self._handle_signals()
        async with AsyncExitStack() as stack:
            for application, port in (
                (metrics_application(self._registry), self._settings.metrics_port),
                (health_application(live=self._live, ready=self._ready), self._settings.health_port),
            ):
                stack.push_async_callback((await serve(application, port)).cleanup)
            configuration = await load_configuration(self._environment)
            bucket = TokenBucket(self._settings.client.qps, self._settings.client.burst, time.monotonic)
            api = ApiClient(configuration, bucket, self._metrics.requested)
            stack.push_async_callback(api.close)
            fetcher = HttpFetcher()
            stack.push_async_callback(fetcher.close)
            await self._elect_and_lead(api, configuration, fetcher)

    async def _elect_and_lead(
        self, api: ApiClient, configuration: Configuration, fetcher: HttpFetcher
    ) -> None:
        if not self._settings.leader_election.enabled:
            await self._until_stopped(asyncio.create_task(self._lead(api, configuration, fetcher)))
            return
        lease = self._settings.leader_election.lease_name
        elector = Elector(api, self._namespace, lease, self._identity, time.monotonic)
        self._metrics.leads(lease, leading=False)
        acquiring = asyncio.create_task(elector.acquire())
        await self._until_stopped(acquiring)
        if acquiring.cancelled():
            return
        self._metrics.leads(lease, leading=True)
        holding = asyncio.create_task(self._hold(elector))
        try:
            await self._until_stopped(asyncio.create_task(self._lead(api, configuration, fetcher)))
        finally:
            await _cancel(holding)
            try:
                await elector.release()
            except ApiError as error:
                _logger.warning("the Lease was not released; it will expire: %s", error)

    async def _lead(self, api: ApiClient, configuration: Configuration, fetcher: HttpFetcher) -> None:
        """Run the leader's parts until canceled."""
        settings = self._settings
        self._leading = True
        cluster = Cluster(api, self._identity or "finetune-operator")
        informer = Informer(self._store, self._gpus, self._queue, cluster, settings.watch_namespace)
        controller = Controller(
            store=self._store,
            queue=self._queue,
            cluster=cluster,
            informer=informer,
            settings=settings,
            metrics=self._metrics,
            now=lambda: datetime.now(UTC),
            clock=time.monotonic,
        )
        port, period = settings.trainer.telemetry_port, settings.progress_seconds
        poller = ProgressPoller(self._store, self._queue.add, fetcher, port, period)
        # Without this, a job could be decided before its children are known.
        await informer.synchronize()
        self._seeded = True
        _logger.info("leading; %d FineTuneJobs", len(self._store.job_keys()))
        async with asyncio.TaskGroup() as parts:
            parts.create_task(run_workers(controller, settings.workers + SPARE_WORKERS))
            parts.create_task(informer.resynchronize(settings.resync_seconds))
            parts.create_task(poller.run())
            parts.create_task(self._watch(informer, configuration))

    async def _watch(self, informer: Informer, configuration: Configuration) -> None:
        """Run Kopf's watches. Kopf ends them if one fails for good, and then the process ends, too."""
        namespace = self._settings.watch_namespace
        ready = asyncio.Event()
        watches = asyncio.create_task(
            kopf.operator(
                registry=build_registry(
                    informer, configuration, watch_nodes=self._gpus.inventory.problem is None
                ),
                settings=build_settings(),
                clusterwide=not namespace,
                namespaces=[namespace] if namespace else [],
                ready_flag=ready,
            )
        )
        starting = asyncio.create_task(ready.wait())
        await asyncio.wait({watches, starting}, return_when=asyncio.FIRST_COMPLETED)
        # Kopf has replaced our signal handlers, and it would wait for our tasks before it ends.
        self._handle_signals()
        try:
            await watches
        finally:
            await _cancel(starting)
        raise RuntimeError(
            "the watches must run until a signal stops the process, but they ended; see the log above"
        )

    async def _hold(self, elector: Elector) -> None:
        try:
            await elector.hold()
        except LeaseLostError as error:
            # Another replica may lead from now on, so nothing may be written any more, not even during cleanup.
            _logger.critical("%s", error)
            logging.shutdown()
            os._exit(1)

    async def _until_stopped(self, task: asyncio.Task[None]) -> None:
        """Wait for `task`, or cancel it if a signal stops the process. Raises the task's error."""
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopping)
        if task.done():
            task.result()
        else:
            await _cancel(task)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _live(self) -> str | None:
        longest = self._queue.longest_work
        return f"a reconcile has taken {longest:.0f} s" if longest > STUCK_SECONDS else None

    def _ready(self) -> str | None:
        """A standby is ready, because it has no store to fill."""
        return "the store is still being filled" if self._leading and not self._seeded else None


async def _cancel(task: asyncio.Task[bool] | asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended, at most STOP_SECONDS."""
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_SECONDS)
