"""The progress document as metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

PREFIX = "finetune_trainer_"
LABELS = ("stage", "activity")
"""Labels of every series. Both values are those of the contract."""
MEMORY_KINDS = {
    "Allocated": "allocatedBytes",
    "AllocatedPeak": "peakAllocatedBytes",
    "Reserved": "reservedBytes",
    "ReservedPeak": "peakReservedBytes",
}
"""The values of the label `kind`, and their members in the progress document."""

_Document = Mapping[str, Any]


@dataclass(frozen=True)
class Gauge:
    """A gauge: its name without the prefix, its unit, its meaning, and how to read it from a progress document."""

    name: str
    unit: str
    text: str
    read: Callable[[_Document], float | None]


def not_training_ratio(document: _Document) -> float | None:
    """Return the share of the stage's time outside of steps, 0 to 1; None before TRAIN trains."""
    seconds = _training(document).get("seconds")
    started, heartbeat = _time(document.get("startTime")), _time(document.get("heartbeatTime"))
    if seconds is None or started is None or heartbeat is None or heartbeat <= started:
        return None
    return min(1.0, max(0.0, 1.0 - float(seconds) / (heartbeat - started)))


def _training(document: _Document) -> _Document:
    training: _Document = document.get("training") or {}
    return training


def _member(name: str) -> Callable[[_Document], float | None]:
    return lambda document: _number(document.get(name))


def _measured(name: str) -> Callable[[_Document], float | None]:
    return lambda document: _number(_training(document).get(name))


def _time(text: Any) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


GAUGES = (
    Gauge("step", "", "Units of the activity that are done.", _member("step")),
    Gauge("total_steps", "", "Units of the activity in all.", _member("totalSteps")),
    Gauge("loss", "nats per token", "Training loss of the last step, per supervised token.", _member("loss")),
    Gauge("learning_rate", "", "Learning rate of the last step.", _member("learningRate")),
    Gauge(
        "gradient_norm",
        "",
        "Euclidean norm of the last step's gradient, before it is clipped.",
        _member("gradientNorm"),
    ),
    Gauge(
        "tokens_per_second",
        "tokens per second",
        "Mean speed of this process, without padding.",
        _member("tokensPerSecond"),
    ),
    Gauge(
        "peak_memory_bytes",
        "bytes",
        "Largest GPU memory that tensors took so far.",
        _member("peakMemoryBytes"),
    ),
    Gauge(
        "evaluation_loss",
        "nats per token",
        "Last loss on held-out rows, per supervised token.",
        _measured("evaluationLoss"),
    ),
    Gauge(
        "router_aux_loss",
        "",
        "Load-balancing loss of the last step's routers, before its coefficient.",
        _measured("routerAuxLoss"),
    ),
    Gauge(
        "last_step_duration_seconds",
        "seconds",
        "Duration of the last step, without pauses.",
        _measured("stepSeconds"),
    ),
    Gauge(
        "not_training_ratio",
        "0 to 1",
        "Share of the stage's time that was spent outside of training steps.",
        not_training_ratio,
    ),
    Gauge(
        "last_checkpoint_timestamp_seconds",
        "Unix time",
        "Time of the newest checkpoint; before the first one, the begin of the training.",
        lambda document: _time(_training(document).get("checkpointTime")),
    ),
    Gauge(
        "heartbeat_timestamp_seconds",
        "Unix time",
        "Time of the last sign of progress.",
        lambda document: _time(document["heartbeatTime"]),
    ),
)
MEMORY = Gauge("gpu_memory_bytes", "bytes", "GPU memory of torch's allocator, by kind.", lambda _: None)
RANKS = {
    "rankSeconds": Gauge(
        "rank_step_duration_seconds",
        "seconds",
        "Time that each rank needed for its own passes of a step, without its wait for the others.",
        lambda _: None,
    ),
    "rankDeviceBytes": Gauge(
        "rank_gpu_memory_peak_bytes",
        "bytes",
        "Largest GPU memory that the tensors of each rank took so far.",
        lambda _: None,
    ),
    "rankHostBytes": Gauge(
        "rank_host_memory_peak_bytes",
        "bytes",
        "Largest resident memory of the process of each rank so far.",
        lambda _: None,
    ),
}
"""Gauges with the label `rank` by their members in the progress document. One process alone has none of them."""
STEPS = Gauge(
    "step_duration_seconds",
    "seconds",
    "Durations of this process's training steps, without pauses.",
    lambda _: None,
)
TOKENS = Gauge(
    "tokens_total",
    "tokens",
    "Tokens that this process has trained on, without padding.",
    _measured("tokens"),
)


def render_metrics(document: _Document) -> bytes:
    """Return the series of each number of a progress document that is known."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Series(document))
    return generate_latest(registry)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


class _Series(Collector):
    def __init__(self, document: _Document) -> None:
        self._document = document
        self._labels = [str(document["stage"]), str(document["activity"])]

    def collect(self) -> Iterator[Metric]:
        """Yield the families of all known numbers, with the stage and the activity as labels."""
        for gauge in GAUGES:
            value = gauge.read(self._document)
            if value is not None:
                family = GaugeMetricFamily(PREFIX + gauge.name, gauge.text, labels=LABELS)
                family.add_metric(self._labels, value)
                yield family
        training = _training(self._document)
        if training:
            yield from self._training(training)

    def _training(self, training: _Document) -> Iterator[Metric]:
        tokens = CounterMetricFamily(PREFIX + TOKENS.name, TOKENS.text, labels=LABELS)
        tokens.add_metric(self._labels, float(training["tokens"]))
        yield tokens
        steps = SummaryMetricFamily(PREFIX + STEPS.name, STEPS.text, labels=LABELS)
        steps.add_metric(self._labels, count_value=training["steps"], sum_value=float(training["seconds"]))
        yield steps
        memory = GaugeMetricFamily(PREFIX + MEMORY.name, MEMORY.text, labels=[*LABELS, "kind"])
        for kind, member in MEMORY_KINDS.items():
            if member in training:
                memory.add_metric([*self._labels, kind], float(training[member]))
        if memory.samples:
            yield memory
        for member, gauge in RANKS.items():
            ranks = GaugeMetricFamily(PREFIX + gauge.name, gauge.text, labels=[*LABELS, "rank"])
            for rank, value in enumerate(training.get(member, ())):
                ranks.add_metric([*self._labels, str(rank)], float(value))
            if ranks.samples:
                yield ranks
