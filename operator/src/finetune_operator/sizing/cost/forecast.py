"""The time and the price of a run on every GPU that it may get, as status and `finetune plan` show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from finetune_operator.api.plan import Device
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.duration import Duration, estimate_duration
from finetune_operator.sizing.cost.prices import Cost, CostSettings, estimate_cost, money
from finetune_operator.sizing.cost.speeds import CPU_SPEED, Speed, speed_of
from finetune_operator.sizing.cost.work import Rows, Span
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.training_plan import TrainingPlan

MAXIMUM_NUMBER = 2**53
"""Largest number in a status."""
_SHARED = frozenset({"TimeSlicing", "Mps"})


@dataclass(frozen=True)
class Forecast:
    """The duration, or why it is not known, and the same for the cost."""

    duration: Duration | str
    cost: Cost | str


def forecast(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    plan: TrainingPlan,
    gpu: Gpu,
    offers: Sequence[Offer],
    rows: Rows | None,
    settings: CostSettings,
    device: Device = "cuda",
    nodes: int = 1,
) -> Forecast:
    """Estimate a run with `plan` for the planned `gpu`. The bounds are those of all `offers` on which it may run.

    The GPUs of `plan` are in so many nodes.
    """
    if rows is None:
        unknown = "the number of training rows is not known"
        return Forecast(unknown, unknown)
    gpus = plan.ranks
    durations: list[tuple[Offer, Duration]] = []
    unknown_products: dict[str, None] = {}
    for offer, replicas in _distinct(offers, settings):
        speed = _speed(offer.gpu.product, settings, device)
        if speed is None:
            unknown_products[offer.gpu.product] = None
        else:
            shared = speed.shared(replicas)
            durations.append(
                (offer, estimate_duration(spec, shape, plan, rows, shared, nodes, settings.links))
            )
    if not durations:
        names = ", ".join(list(unknown_products)[:4]) or gpu.product
        reason = f"no speed of {names} is published or measured; add it to the chart's cost.speeds"
        return Forecast(reason, reason)
    of_planned = [each for offer, each in durations if offer.gpu.product == gpu.product]
    chosen = min(of_planned or [each for _, each in durations], key=lambda each: each.seconds.expected)
    low = min(each.seconds.low for _, each in durations)
    high = max(each.seconds.high for _, each in durations)
    spanning = replace(chosen, seconds=Span(low, chosen.seconds.expected, high))
    return Forecast(spanning, estimate_cost(durations, gpus, settings, gpu.product))


def _distinct(offers: Sequence[Offer], settings: CostSettings) -> list[tuple[Offer, int]]:
    """One offer for each product, number of pods that share it, and set of labels on which its price depends."""
    found: dict[tuple[object, ...], tuple[Offer, int]] = {}
    for offer in offers:
        replicas = offer.replicas if offer.sharing in _SHARED else 1
        labels = tuple(offer.labels.get(key) for key in settings.label_keys)
        found.setdefault((offer.gpu.product, replicas, labels), (offer, replicas))
    return list(found.values())


def _speed(product: str, settings: CostSettings, device: Device) -> Speed | None:
    return CPU_SPEED if device == "cpu" else speed_of(product, settings.speeds)


def shown_duration(duration: Duration, gpus: int) -> dict[str, Any]:
    """A duration with whole seconds, and the expected GPU hours as text."""
    seconds = duration.seconds
    low, expected, high = (max(1, round(value)) for value in (seconds.low, seconds.expected, seconds.high))
    return {
        "lowSeconds": low,
        "expectedSeconds": expected,
        "highSeconds": high,
        "gpuHours": money(Decimal(f"{duration.gpu_hours(gpus).expected:.4f}")),
        "steps": min(duration.steps, MAXIMUM_NUMBER),
        "tokens": min(duration.tokens, MAXIMUM_NUMBER),
        "tokensPerSecond": f"{duration.tokens_per_second:.6g}",
        "parts": [
            {"name": name, "seconds": min(round(value), MAXIMUM_NUMBER)} for name, value in duration.parts
        ],
        "source": duration.source,
        "reason": duration.reason[:1024],
    }


def shown_cost(cost: Cost) -> dict[str, Any]:
    """A cost with its amounts as decimal text."""
    return {
        "low": money(cost.low),
        "expected": money(cost.expected),
        "high": money(cost.high),
        "currency": cost.currency,
        "reason": cost.reason[:1024],
    }
