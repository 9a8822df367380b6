"""The progress document as metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_GAUGES = {
    "step": ("step", "Units of the activity done."),
    "totalSteps": ("total_steps", "Units of the activity in all."),
    "loss": ("loss", "Training loss, nats per supervised token."),
    "learningRate": ("learning_rate", "Learning rate of the last step."),
    "gradientNorm": ("gradient_norm", "Euclidean norm of the last step's gradient, before it is clipped."),
    "tokensPerSecond": ("tokens_per_second", "Tokens processed per second."),
    "peakMemoryBytes": ("peak_memory_bytes", "Largest device memory allocated so far."),
}


def render_metrics(document: Mapping[str, Any]) -> bytes:
    """Return one gauge for each number of a progress document that is known."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(document))
    return generate_latest(registry)


class _Gauges(Collector):
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, with the stage and the activity as labels."""
        for member, (name, text) in _GAUGES.items():
            value = self._document.get(member)
            if value is not None:
                yield self._gauge(name, text, float(value))
        heartbeat = datetime.fromisoformat(self._document["heartbeatTime"]).timestamp()
        yield self._gauge("heartbeat_timestamp_seconds", "Unix time of the last sign of progress.", heartbeat)

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(f"finetune_trainer_{name}", text, labels=["stage", "activity"])
        gauge.add_metric([str(self._document["stage"]), str(self._document["activity"])], value)
        return gauge
