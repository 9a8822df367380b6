"""Prometheus metrics of the operator and of the cluster's GPUs.

The operator's series have controller-runtime's names, so standard dashboards for controllers work.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.runtime.fleet import FleetMetrics

CONTROLLER = "finetunejob"
_QUEUE_BUCKETS = tuple(10.0**exponent for exponent in range(-8, 4))
_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class OperatorMetrics:
    """The operator's own series. Every possible label value exists from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
        self.fleet = FleetMetrics(registry)
        """Series of all FineTuneJobs together."""
        queue, controller = ["name"], ["controller"]
        self._depth = Gauge("workqueue_depth", "Keys that are waiting.", queue, registry=registry).labels(
            CONTROLLER
        )
        self._adds = Counter("workqueue_adds_total", "Keys added.", queue, registry=registry).labels(
            CONTROLLER
        )
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Time for which a key waited.",
            queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        ).labels(CONTROLLER)
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Duration of the work on a key.",
            queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        ).labels(CONTROLLER)
        self._retries = Counter(
            "workqueue_retries_total", "Keys whose work failed and is repeated.", queue, registry=registry
        ).labels(CONTROLLER)
        self._reconciles = Counter(
            "controller_runtime_reconcile_total", "Reconciles.", [*controller, "result"], registry=registry
        )
        for result in ("success", "requeue", "requeue_after", "error"):
            self._reconciles.labels(CONTROLLER, result)
        self._errors = Counter(
            "controller_runtime_reconcile_errors_total", "Failed reconciles.", controller, registry=registry
        ).labels(CONTROLLER)
        self._seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of a reconcile.",
            controller,
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        ).labels(CONTROLLER)
        self._active = Gauge(
            "controller_runtime_active_workers", "Workers that are busy.", controller, registry=registry
        ).labels(CONTROLLER)
        self._maximum = Gauge(
            "controller_runtime_max_concurrent_reconciles", "Workers.", controller, registry=registry
        ).labels(CONTROLLER)
        self._longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "Duration of the longest current work.",
            queue,
            registry=registry,
        ).labels(CONTROLLER)
        self._longest_work: Callable[[], float] = float
        self._leader = Gauge(
            "leader_election_master_status", "1 while this replica leads.", queue, registry=registry
        )
        self._events = Counter(
            "finetune_operator_events_total",
            "Kubernetes Events about FineTuneJobs that were written or dropped.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("written", "dropped"):
            self._events.labels(outcome)
        self._polls = Counter(
            "finetune_operator_progress_polls_total",
            "Polls of running trainers for their progress.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("answered", "closed", "silent", "refused"):
            self._polls.labels(outcome)
        self._requests = Counter(
            "rest_client_requests_total", "Requests to the API server.", ["code", "method"], registry=registry
        )

    def added(self, depth: int) -> None:
        """A key was added."""
        self._adds.inc()
        self._depth.set(depth)

    def taken(self, depth: int, waited: float) -> None:
        """A key was taken after `waited` seconds."""
        self._depth.set(depth)
        self._waited.observe(waited)

    def done(self, worked: float) -> None:
        """The work on a key ended after `worked` seconds."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """The work on a key failed and will be repeated."""
        self._retries.inc()

    def reconciled(self, result: str, seconds: float) -> None:
        """A reconcile ended."""
        self._reconciles.labels(CONTROLLER, result).inc()
        self._seconds.observe(seconds)
        if result == "error":
            self._errors.inc()

    def active(self, change: int) -> None:
        """A worker began (+1) or ended (-1) a reconcile."""
        self._active.inc(change)

    def workers(self, count: int, longest_work: Callable[[], float]) -> None:
        """Set the number of workers, and a function for the duration of the longest current work in seconds."""
        self._maximum.set(count)
        self._longest_work = longest_work

    def refresh(self) -> None:
        """Read what has no event of its own. Call it from the event loop before a scrape."""
        self._longest.set(self._longest_work())

    def polled(self, outcome: str) -> None:
        """One poll of a trainer's progress ended."""
        self._polls.labels(outcome).inc()

    def leads(self, lease: str, *, leading: bool) -> None:
        """Set whether this replica leads."""
        self._leader.labels(lease).set(int(leading))

    def events(self, outcome: str, number: int) -> None:
        """`number` Events were `written` or `dropped`."""
        self._events.labels(outcome).inc(number)

    def requested(self, method: str, code: str) -> None:
        """A request to the API server ended with this status code, or `<error>` without a response."""
        self._requests.labels(code, method).inc()


class GpuCollector(Collector):
    """Series of the GPUs that jobs have asked for, on nodes and in GPU profiles. Any thread may collect them."""

    def __init__(self, gpus: GpuStore) -> None:
        """Read from `gpus` at each scrape."""
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        """All metric families with their samples."""
        labels = ["product", "resource"]
        counts = GaugeMetricFamily(
            "finetune_gpus",
            "GPUs that nodes offer. GPUs of gpuProfiles, which do not exist yet, have the state Catalogue.",
            labels=[*labels, "state"],
        )
        usable = GaugeMetricFamily(
            "finetune_gpu_usable_bytes", "Memory of one GPU that a process can use.", labels=labels
        )
        inventory = self._gpus.inventory
        number: Counts[tuple[str, str, str]] = Counts()
        sizes: dict[tuple[str, str], int] = {}
        for resource in sorted(self._gpus.asked_for):
            for offer in inventory.offers(resource):
                state = offer.state if offer.node is not None else "Catalogue"
                number[offer.gpu.product, resource, state] += offer.count
                if offer.gpu.usable_bytes is not None:
                    key = (offer.gpu.product, resource)
                    sizes[key] = min(sizes.get(key, offer.gpu.usable_bytes), offer.gpu.usable_bytes)
        for identity, count in sorted(number.items()):
            counts.add_metric(identity, count)
        for product, size in sorted(sizes.items()):
            usable.add_metric(product, size)
        return [counts, usable]
