"""Prometheus metrics of the operator and of its jobs.

The operator's series have controller-runtime's names, so standard dashboards for controllers work. The series of jobs
are computed from the store at scrape time, so they end with their object.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import OPERATOR_CLASSES, ReasonClass
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import JobRecord

CONTROLLER = "finetunejob"
_QUEUE_BUCKETS = tuple(10.0**exponent for exponent in range(-8, 4))
_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class OperatorMetrics:
    """The operator's own series. Every possible label value exists from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
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
        self._longest.set_function(longest_work)

    def leads(self, lease: str, *, leading: bool) -> None:
        """Set whether this replica leads."""
        self._leader.labels(lease).set(int(leading))

    def events(self, outcome: str, number: int) -> None:
        """`number` Events were `written` or `dropped`."""
        self._events.labels(outcome).inc(number)

    def requested(self, method: str, code: str) -> None:
        """A request to the API server ended with this status code, or `<error>` without a response."""
        self._requests.labels(code, method).inc()


class JobCollector(Collector):
    """Series of every FineTuneJob in the store, labeled `namespace` and `name`."""

    def __init__(self, store: Store) -> None:
        """Read from `store` at each scrape."""
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """All metric families with their samples."""
        labels = ["namespace", "name"]
        info = GaugeMetricFamily(
            "finetunejob_info", "1 for every FineTuneJob.", labels=[*labels, "model", "phase"]
        )
        condition = GaugeMetricFamily(
            "finetunejob_status_condition",
            "1 for the present status of a condition, 0 for its other statuses.",
            labels=[*labels, "type", "status"],
        )
        gauges = {
            name: GaugeMetricFamily(f"finetunejob_{name}", text, labels=labels)
            for name, text in _GAUGES.items()
        }
        for job in self._store.jobs():
            identity = [job.namespace, job.name]
            info.add_metric([*identity, _model_name(job.spec), str(job.status.get("phase", "Pending"))], 1)
            for entry in job.status.get("conditions") or ():
                for truth in Truth:
                    sample = [*identity, entry["type"], truth.value]
                    condition.add_metric(sample, int(entry["status"] == truth))
            for name, value in _readable_values(job).items():
                gauges[name].add_metric(identity, value)
        return [info, condition, *gauges.values(), _stalled(self._store.jobs())]


class GpuCollector(Collector):
    """Series of the GPUs that jobs have asked for, on nodes and in GPU profiles."""

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


def _stalled(jobs: Iterable[JobRecord]) -> GaugeMetricFamily:
    """Number of stalled jobs by reason. Failed jobs do not count."""
    family = GaugeMetricFamily(
        "finetunejobs_stalled", "FineTuneJobs that no GPU or volume of the cluster suits.", labels=["reason"]
    )
    number: Counts[str] = Counts()
    for job in jobs:
        if find_condition(job.status, Condition.SUCCEEDED).get("status") == Truth.UNKNOWN:
            stalled = find_condition(job.status, Condition.STALLED)
            number[stalled.get("reason", "")] += stalled.get("status") == Truth.TRUE
    for reason, entry in OPERATOR_CLASSES.items():
        if entry is ReasonClass.STALLED:
            family.add_metric([reason.value], number[reason.value])
    return family


_GAUGES = {
    "created_timestamp_seconds": "Time at which the FineTuneJob was created.",
    "start_timestamp_seconds": "Time at which it was accepted or last resumed.",
    "completion_timestamp_seconds": "Time at which it ended.",
    "progress_ratio": "Completed fraction of the current activity, 0 to 1.",
    "train_loss": "Last reported training loss, in nats per supervised token.",
    "base_loss": "Validation loss before training, in nats per supervised token.",
    "tuned_loss": "Validation loss after training, in nats per supervised token.",
    "attempts": "Number of attempts that have ended, at most 20.",
    "requested_gpus": "GPUs that TRAIN requests.",
    "memory_estimated_bytes": "Estimated peak of the GPU memory that TRAIN allocates.",
    "memory_measured_bytes": "Peak of the GPU memory that TRAIN allocated, measured by its last attempt.",
    "memory_ratio": "Measured GPU memory divided by the estimate.",
}


def _readable_values(job: JobRecord) -> dict[str, float]:
    """The gauges of this job; none if another version wrote a status that this one cannot read."""
    try:
        return _values(job)
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _values(job: JobRecord) -> dict[str, float]:
    """The gauges that have a value for this job."""
    status = job.status
    progress, evaluation = status.get("progress") or {}, status.get("evaluation") or {}
    values: dict[str, float] = {
        "created_timestamp_seconds": job.created.timestamp(),
        "attempts": float(len(status.get("attempts") or ())),
        "requested_gpus": float((job.spec.get("resources") or {}).get("gpus", 1)),
    }
    for name, field in (
        ("start_timestamp_seconds", "startTime"),
        ("completion_timestamp_seconds", "completionTime"),
    ):
        if field in status:
            values[name] = parse_time(status[field]).timestamp()
    if "percent" in progress:
        values["progress_ratio"] = float(progress["percent"].rstrip("%")) / 100
    values |= _memory(status)
    for name, source, field in (
        ("train_loss", progress, "loss"),
        ("base_loss", evaluation, "baseLoss"),
        ("tuned_loss", evaluation, "tunedLoss"),
    ):
        if field in source:
            values[name] = float(source[field])
    return values


def _memory(status: Mapping[str, Any]) -> dict[str, float]:
    """Estimated and measured GPU memory, if they are known."""
    values: dict[str, float] = {}
    plan = status.get("plan") or {}
    if "memory" in plan:
        values["memory_estimated_bytes"] = float(plan["memory"]["peakBytes"])
    for attempt in reversed(status.get("attempts") or ()):
        memory = attempt.get("memory") or {}
        if "allocatedBytes" in memory:
            values["memory_measured_bytes"] = float(memory["allocatedBytes"])
            if memory.get("estimatedBytes"):
                values["memory_ratio"] = memory["allocatedBytes"] / memory["estimatedBytes"]
            break
    return values


def _model_name(spec: Mapping[str, Any]) -> str:
    source = (spec.get("model") or {}).get("source") or {}
    hub, claim = source.get("huggingFace") or {}, source.get("persistentVolumeClaim") or {}
    return str(hub.get("repository") or claim.get("path") or claim.get("claimName") or "")
