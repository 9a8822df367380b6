"""The process of one replica: its configuration, its HTTP servers, its signals and its watches."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry, disable_created_metrics

from finetune_operator.cluster.client import ApiClient, load_configuration
from finetune_operator.cluster.fence import elapsed_time
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.namespace_watches import NamespaceWatches
from finetune_operator.cluster.progress_poller import HttpFetcher
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.watches import (
    CLUSTER_KINDS,
    JOB_SETS,
    NAMESPACED_KINDS,
    build_registry,
    run_watches,
)
from finetune_operator.errors import SettingsError
from finetune_operator.observed.pod_address import OperatorPod
from finetune_operator.runtime.exposition import Exposition
from finetune_operator.runtime.health import Vitals, liveness, readiness
from finetune_operator.runtime.health_metrics import HealthMetrics
from finetune_operator.runtime.heap import Heap
from finetune_operator.runtime.http_server import health_application, metrics_application, serve
from finetune_operator.runtime.loop_lag import LoopLag
from finetune_operator.runtime.loop_thread import LoopThread
from finetune_operator.runtime.metrics import GpuCollector, OperatorMetrics
from finetune_operator.runtime.replica import Edges, Replica, cancel
from finetune_operator.settings import Settings


class Operator:
    """One replica with everything that it meets outside: the API server, the trainers, probes and signals."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Raises SettingsError if leader election is enabled and the pod's name or namespace is missing."""
        self._settings = settings
        self._environment = environment
        identity, namespace = environment.get("POD_NAME", ""), environment.get("POD_NAMESPACE", "")
        if settings.leader_election.enabled and not (identity and namespace):
            raise SettingsError(
                "POD_NAME and POD_NAMESPACE must be set from the downward API if leaderElection.enabled is true, found "
                f"{identity!r} and {namespace!r}; use the Deployment of the chart, which sets them"
            )
        # A creation time for every counter would double the number of series, and no dashboard uses it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # not annotated by the library
        self._registry = CollectorRegistry()
        self._metrics = OperatorMetrics(self._registry)
        self._replica = Replica(
            settings,
            self._metrics,
            elapsed_time,
            identity=identity,
            namespace=namespace,
            own=OperatorPod(environment.get("POD_IP", ""), environment.get("NODE_NAME", "")),
        )
        self._registry.register(GpuCollector(self._replica.gpus))
        self._health = HealthMetrics(self._registry)
        self._lag = LoopLag(elapsed_time)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises the error that ended a part before that."""
        self._handle_signals()
        exposition = Exposition(
            self._registry,
            self._replica.store,
            lambda: datetime.now(UTC),
            self._refresh,
            self._replica.activities,
            self._settings.metrics.retention,
            self._settings.cost.labels,
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(cancel, asyncio.create_task(self._lag.run()))
            stack.push_async_callback(cancel, asyncio.create_task(Heap().run()))
            # Scrapes are large. On the operator's own loop, they and the operator would wait for each other.
            aside = await stack.enter_async_context(LoopThread("metrics"))
            metrics = await aside.run(serve(metrics_application(exposition), self._settings.metrics_port))
            stack.push_async_callback(lambda: aside.run(metrics.cleanup()))
            # Probes ask if this loop works, so it answers them itself.
            health = health_application(
                live=lambda: liveness(self._vitals()), ready=lambda: readiness(self._vitals())
            )
            stack.push_async_callback((await serve(health, self._settings.health_port)).cleanup)
            configuration = await load_configuration(self._environment)
            bucket = TokenBucket(self._settings.client.qps, self._settings.client.burst, elapsed_time)
            api = ApiClient(configuration, bucket, self._metrics.requested)
            stack.push_async_callback(api.close)
            fetcher = HttpFetcher()
            stack.push_async_callback(fetcher.close)
            edges = Edges(
                api=api,
                fetch=fetcher,
                watch=lambda informer: self._watch(informer, configuration),
                abort=_abort,
                now=lambda: datetime.now(UTC),
            )
            await self._replica.run(edges, self._stop)

    def _vitals(self) -> Vitals:
        return replace(self._replica.vitals(), loop_lag=self._lag.lasting)

    def _refresh(self) -> None:
        """Bring the metrics up to date that have no event of their own."""
        self._metrics.refresh()
        self._health.show(self._vitals(), self._lag.largest)

    async def _watch(self, informer: Informer, configuration: Configuration) -> None:
        """Run Kopf's watches. If one of all namespaces fails for good, the process ends, too."""
        ages = self._replica.watch_ages
        kinds_of_namespace = (*NAMESPACED_KINDS, JOB_SETS) if self._replica.job_sets else NAMESPACED_KINDS
        cluster_kinds = CLUSTER_KINDS if self._replica.gpus.inventory.problem is None else ()

        async def watch(
            namespace: str, kinds: tuple[str, ...], forbidden: Callable[[], None] | None = None
        ) -> None:
            ages.expect(kinds, namespace)
            try:
                registry = build_registry(informer, configuration, ages, kinds, forbidden)
                # Kopf has replaced our signal handlers.
                await run_watches(registry, namespace, self._handle_signals)
            finally:
                ages.forget(namespace)

        if not self._settings.watch_namespaces:
            await watch("", (*kinds_of_namespace, *cluster_kinds))
            return
        namespaces = NamespaceWatches(
            informer,
            lambda namespace, forbidden: watch(namespace, kinds_of_namespace, forbidden),
            elapsed_time,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(namespaces.run())
            if cluster_kinds:
                group.create_task(watch("", cluster_kinds))

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)


def _abort() -> None:
    logging.shutdown()
    os._exit(1)
