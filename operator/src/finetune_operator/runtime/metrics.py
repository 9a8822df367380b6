"""Prometheus metrics: the operator's own under controller-runtime's names, the jobs' from the store at scrape time.

Stock dashboards for controllers work on the former. The latter end with their object, since nothing is remembered.
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
    """The operator's own series; every label value that can occur is there from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
        queue, controller = ["name"], ["controller"]
        self._depth = Gauge("workqueue_depth", "Keys that wait.", queue, registry=registry).labels(CONTROLLER)
        self._adds = Counter("workqueue_adds_total", "Keys added.", queue, registry=registry).labels(
            CONTROLLER
        )
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Time that a key waits.",
            queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        ).labels(CONTROLLER)
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Time that a key is worked on.",
            queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        ).labels(CONTROLLER)
        self._retries = Counter(
            "workqueue_retries_total", "Keys that failed and are tried again.", queue, registry=registry
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
            "Time of a reconcile.",
            controller,
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        ).labels(CONTROLLER)
        self._active = Gauge(
            "controller_runtime_active_workers", "Workers at work.", controller, registry=registry
        ).labels(CONTROLLER)
        self._maximum = Gauge(
            "controller_runtime_max_concurrent_reconciles", "Workers.", controller, registry=registry
        ).labels(CONTROLLER)
        self._longest = Gauge(
            "workqueue_longest_running_processor_seconds", "Longest current work.", queue, registry=registry
        ).labels(CONTROLLER)
        self._leader = Gauge(
            "leader_election_master_status", "1 while this replica leads.", queue, registry=registry
        )
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
        """A key was worked on for `worked` seconds."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key failed and will be tried again."""
        self._retries.inc()

    def reconciled(self, result: str, seconds: float) -> None:
        """A reconcile ended."""
        self._reconciles.labels(CONTROLLER, result).inc()
        self._seconds.observe(seconds)
        if result == "error":
            self._errors.inc()

    def active(self, change: int) -> None:
        """A worker began or ended a reconcile."""
        self._active.inc(change)

    def workers(self, count: int, longest_work: Callable[[], float]) -> None:
        """The number of workers, and how to ask for the longest current work in seconds."""
        self._maximum.set(count)
        self._longest.set_function(longest_work)

    def leads(self, lease: str, *, leading: bool) -> None:
        """Whether this replica leads."""
        self._leader.labels(lease).set(int(leading))

    def requested(self, method: str, code: str) -> None:
        """A request to the API server was answered, or failed with code `<error>`."""
        self._requests.labels(code, method).inc()


class JobCollector(Collector):
    """Series of every FineTuneJob in the store, labelled `namespace` and `name`."""

    def __init__(self, store: Store) -> None:
        """Read from `store` at each scrape."""
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """All families, each with its samples."""
        labels = ["namespace", "name"]
        info = GaugeMetricFamily(
            "finetunejob_info", "1 for every FineTuneJob.", labels=[*labels, "model", "phase"]
        )
        condition = GaugeMetricFamily(
            "finetunejob_status_condition",
            "1 for the status that a condition has, 0 for the others.",
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
            for name, value in _values(job).items():
                gauges[name].add_metric(identity, value)
        return [info, condition, *gauges.values(), _stalled(self._store.jobs())]


class GpuCollector(Collector):
    """Series of the GPUs that jobs have asked about, of nodes and of the catalogue."""

    def __init__(self, gpus: GpuStore) -> None:
        """Read from `gpus` at each scrape."""
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        """All families, each with its samples."""
        labels = ["product", "resource"]
        counts = GaugeMetricFamily(
            "finetune_gpus",
            "GPUs that nodes offer; those of the catalogue, which do not exist yet, count as state Catalogue.",
            labels=[*labels, "state"],
        )
        usable = GaugeMetricFamily(
            "finetune_gpu_usable_bytes", "Memory of one GPU that one process can use.", labels=labels
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
    """How many jobs cannot go on as things stand, by reason; those that have failed do not count."""
    family = GaugeMetricFamily(
        "finetunejobs_stalled", "FineTuneJobs that cannot go on as things stand.", labels=["reason"]
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
    "created_timestamp_seconds": "When the FineTuneJob was created.",
    "start_timestamp_seconds": "When it was accepted or last resumed.",
    "completion_timestamp_seconds": "When it ended.",
    "progress_ratio": "Share of the current activity that is done, 0 to 1.",
    "train_loss": "Training loss reported last, nats per supervised token.",
    "base_loss": "Validation loss before training, nats per supervised token.",
    "tuned_loss": "Validation loss after training, nats per supervised token.",
    "attempts": "Attempts of stages that have ended, at most the last 20.",
    "requested_gpus": "GPUs that TRAIN asks for.",
    "memory_estimated_bytes": "Estimated most GPU memory that TRAIN allocates at one time.",
    "memory_measured_bytes": "Most GPU memory that TRAIN allocated at one time, as its last attempt measured it.",
    "memory_ratio": "Measured over estimated GPU memory.",
}


def _values(job: JobRecord) -> dict[str, float]:
    """The gauges that this job has a value for."""
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
    """Estimated and measured GPU memory, as far as they are known."""
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
