"""Counters of the GPU time and the cost of all FineTuneJobs together.

They have no label of a tenant: values of labels are free text, so their number would have no bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from finetune_operator.observed.observation import JobRecord

MAXIMUM_PRODUCTS = 64
OTHER = "Other"
"""Stands for further products: a node label may name any."""


class UsageMetrics:
    """Counts what `status.usage` of jobs gains while this replica leads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
        self._products: set[str] = set()
        self._used = Counter(
            "finetunejobs_used_gpu_seconds",
            "GPU time of all ended attempts of TRAIN.",
            ["product"],
            registry=registry,
        )
        self._wasted = Counter(
            "finetunejobs_wasted_gpu_seconds",
            "Part of the used GPU time in attempts that did not succeed.",
            ["product"],
            registry=registry,
        )
        money = ["product", "currency"]
        self._cost = Counter("finetunejobs_cost", "Cost of the used GPU time.", money, registry=registry)
        self._wasted_cost = Counter(
            "finetunejobs_wasted_cost", "Cost of the wasted GPU time.", money, registry=registry
        )

    def changed(self, old: JobRecord, new: JobRecord) -> None:
        """A FineTuneJob has changed from `old` to `new`. What cannot be read is not counted."""
        before, after = old.status.get("usage"), new.status.get("usage")
        if after == before or not after:
            return
        try:
            self._count(before or {}, after)
        except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation):
            return

    def _count(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        product = self._bounded(str(after["product"]))
        self._used.labels(product).inc(_gain(before, after, "gpuSeconds"))
        self._wasted.labels(product).inc(_gain(before, after, "wastedGpuSeconds"))
        cost = after.get("cost")
        if cost:
            known, currency = before.get("cost") or {}, str(cost["currency"])
            self._cost.labels(product, currency).inc(_gain(known, cost, "amount"))
            self._wasted_cost.labels(product, currency).inc(_gain(known, cost, "wasted"))

    def _bounded(self, product: str) -> str:
        if product not in self._products and len(self._products) >= MAXIMUM_PRODUCTS:
            return OTHER
        self._products.add(product)
        return product


def _gain(before: Mapping[str, Any], after: Mapping[str, Any], member: str) -> float:
    return max(0.0, float(Decimal(after.get(member, 0)) - Decimal(before.get(member, 0))))
