from __future__ import annotations

from typing import Any

from finetune_operator.runtime.usage_metrics import MAXIMUM_PRODUCTS, OTHER, UsageMetrics
from prometheus_client import CollectorRegistry

from tests.support.operator import make_job

L4 = {"product": "NVIDIA L4"}


def usage(seconds: int, wasted: int = 0, amount: str | None = None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"gpuSeconds": seconds, "wastedGpuSeconds": wasted, **L4}
    if amount is not None:
        found["cost"] = {"amount": amount, "wasted": "0.1", "currency": "EUR"}
    return {"usage": {**found, **changes}}


def test_every_gain_of_a_job_is_counted_once() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry)
    first, second = make_job(status=usage(100, 20, "1.5")), make_job(status=usage(160, 20, "2.25"))
    for old, new in ((make_job(), first), (first, first), (first, second), (second, second)):
        metrics.changed(old, new)
    value = registry.get_sample_value
    assert value("finetunejobs_used_gpu_seconds_total", L4) == 160
    assert value("finetunejobs_wasted_gpu_seconds_total", L4) == 20
    assert value("finetunejobs_cost_total", {**L4, "currency": "EUR"}) == 2.25
    assert value("finetunejobs_wasted_cost_total", {**L4, "currency": "EUR"}) == 0.1


def test_a_status_that_was_lost_or_cannot_be_read_takes_nothing_back() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry)
    counted = make_job(status=usage(100))
    metrics.changed(make_job(), counted)
    for new in ({}, usage(50), {"usage": {"gpuSeconds": "many", **L4}}, {"usage": [1]}, usage(120, cost="x")):
        metrics.changed(counted, make_job(status=new))
    assert registry.get_sample_value("finetunejobs_used_gpu_seconds_total", L4) == 120


def test_the_number_of_products_is_bounded() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry)
    for number in range(MAXIMUM_PRODUCTS + 10):
        metrics.changed(make_job(), make_job(status=usage(1, product=f"GPU {number}")))
    other = registry.get_sample_value("finetunejobs_used_gpu_seconds_total", {"product": OTHER})
    assert other == 10
