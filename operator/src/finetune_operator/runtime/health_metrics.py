"""The measured values of health.py as series of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from finetune_operator.runtime.health import Vitals, liveness, readiness


class HealthMetrics:
    """Series that `show` brings up to date before a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
        self._lag = Gauge(
            "finetune_operator_event_loop_lag_seconds",
            "Largest time by which the event loop was late in the last minute.",
            registry=registry,
        )
        self._watches = Gauge(
            "finetune_operator_watch_age_seconds",
            "Time since the last sign of life of a watch.",
            ["resource"],
            registry=registry,
        )
        self._namespaces = Gauge(
            "finetune_operator_namespace_served",
            "1 if a namespace of watchNamespaces can be read, 0 if it is missing or has no Role of the operator.",
            ["namespace"],
            registry=registry,
        )
        self._filled = Gauge(
            "finetune_operator_store_filled",
            "1 if this replica leads and knows all FineTuneJobs, 0 while it reads those that have ended or stands by.",
            registry=registry,
        )
        self._lease = Gauge(
            "finetune_operator_lease_age_seconds",
            "Time since the last renewal of the Lease; without a value unless this replica holds it.",
            registry=registry,
        )
        self._problems = Gauge(
            "finetune_operator_health_problems",
            "Problems that a probe reports.",
            ["probe"],
            registry=registry,
        )

    def show(self, vitals: Vitals, largest_lag: float) -> None:
        """Take over the measured values. `largest_lag` is that of the last minute, in seconds."""
        self._lag.set(largest_lag)
        self._watches.clear()
        for plural, age in vitals.watches.items():
            self._watches.labels(plural).set(age)
        self._namespaces.clear()
        for namespace, served in vitals.namespaces.items():
            self._namespaces.labels(namespace).set(int(served))
        self._filled.set(int(vitals.filled))
        self._lease.set(float("nan") if vitals.lease_age is None else vitals.lease_age)
        self._problems.labels("liveness").set(len(liveness(vitals)))
        self._problems.labels("readiness").set(len(readiness(vitals)))
