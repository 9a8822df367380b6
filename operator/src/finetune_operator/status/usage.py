"""The GPU time that a job has used: measured per pod of TRAIN, summed in `status.usage`, and priced.

The time of a pod is that of its trainer, from the start of the container to its end, by the clock of one node. If the end is
not known, because the pod is gone, the operator's clock at that moment counts. Intervals of one attempt never overlap: what
an earlier pod has counted is not counted again, whatever the clocks say. A wait or a suspension has no trainer, so it costs
nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from finetune_operator.api.formats import format_time, parse_time
from finetune_operator.sizing.cost.prices import amount_of, money

MAXIMUM_PRODUCT = 256


@dataclass(frozen=True)
class Price:
    """The price of one GPU for an hour."""

    per_gpu_hour: Decimal
    currency: str


@dataclass(frozen=True)
class PodTime:
    """The time of one pod's trainer, and what it holds. `ended` is None while it runs, or if nobody knows when it ended."""

    uid: str
    started: datetime
    ended: datetime | None
    gone: bool
    """True if the trainer has ended."""
    gpus: int
    product: str
    price: Price | None


@dataclass(frozen=True)
class GpuTime:
    """The time of the current attempt: that of its last pod, and the seconds of those before it."""

    pod: str
    start: datetime
    end: datetime | None
    earlier_seconds: int
    gpus: int
    product: str
    price: Price | None

    @classmethod
    def read(cls, stage: Mapping[str, Any]) -> GpuTime | None:
        """Read `status.stage.gpuTime`; None if there is none, or if another version wrote what this one cannot read."""
        shown = stage.get("gpuTime")
        if not shown:
            return None
        try:
            price = shown.get("pricePerGpuHour")
            return cls(
                pod=str(shown["podUid"]),
                start=parse_time(shown["startTime"]),
                end=parse_time(shown["endTime"]) if "endTime" in shown else None,
                earlier_seconds=int(shown.get("earlierSeconds", 0)),
                gpus=int(shown["gpus"]),
                product=str(shown["product"]),
                price=None if price is None else Price(Decimal(price), str(shown["currency"])),
            )
        except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation):
            return None

    def show(self) -> dict[str, Any]:
        """The same as a member of status."""
        shown: dict[str, Any] = {
            "podUid": self.pod,
            "startTime": format_time(self.start),
            "gpus": self.gpus,
            "product": self.product[:MAXIMUM_PRODUCT],
        }
        if self.end is not None:
            shown["endTime"] = format_time(self.end)
        if self.earlier_seconds:
            shown["earlierSeconds"] = self.earlier_seconds
        if self.price is not None:
            shown |= {"pricePerGpuHour": money(self.price.per_gpu_hour), "currency": self.price.currency}
        return shown

    def seconds(self, now: datetime) -> int:
        """Whole seconds of the last pod, at least 0."""
        return max(0, int(((self.end or now) - self.start).total_seconds()))


def observe(fields: Mapping[str, Any], pods: Sequence[PodTime], now: datetime) -> dict[str, Any]:
    """Bring `status.stage.gpuTime` up to date with the pods of the current attempt, the oldest first.

    A pod that another one replaces is added to `status.usage` at once, as wasted time.
    """
    found = dict(fields)
    held = GpuTime.read(found.get("stage") or {})
    if held is not None and all(pod.uid != held.pod for pod in pods) and held.end is None:
        later = [pod.started for pod in pods if pod.started > held.start]
        held = replace(held, end=max(held.start, min(later, default=now)))
    for pod in pods:
        ended = (pod.ended or now) if pod.gone else None
        if held is None:
            held = GpuTime(pod.uid, pod.started, ended, 0, pod.gpus, pod.product, pod.price)
        elif pod.uid == held.pod:
            # An end that was recorded stays, unless the pod turns out to run.
            held = replace(held, end=None if ended is None else held.end or max(held.start, ended))
        elif ended is None or ended > held.start:
            before = held.end or max(held.start, pod.started)
            replaced = replace(held, end=before)
            found = _added(found, replaced, replaced.seconds(now), wasted=True)
            start = max(pod.started, before)
            held = GpuTime(
                pod.uid,
                start,
                None if ended is None else max(start, ended),
                held.earlier_seconds + replaced.seconds(now),
                pod.gpus,
                pod.product,
                pod.price,
            )
    if held is None:
        return found
    return {**found, "stage": {**(found.get("stage") or {}), "gpuTime": held.show()}}


def settle(
    fields: Mapping[str, Any], ended: datetime, *, succeeded: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Close the attempt's time: return the fields with it in `status.usage`, and the members of its entry in `attempts`.

    `ended` is the end of a pod that still runs. Nothing changes if no trainer has run.
    """
    stage = dict(fields.get("stage") or {})
    held = GpuTime.read(stage)
    if "gpuTime" not in stage:
        return dict(fields), {}
    del stage["gpuTime"]
    found = {**fields, "stage": stage}
    if held is None:
        return found, {}
    last = held.seconds(ended)
    entry = {
        "gpuSeconds": held.gpus * (held.earlier_seconds + last),
        "gpuProduct": held.product[:MAXIMUM_PRODUCT],
    }
    return _added(found, held, last, wasted=not succeeded), entry


def _added(fields: Mapping[str, Any], held: GpuTime, seconds: int, *, wasted: bool) -> dict[str, Any]:
    """Add the time of a pod to `status.usage`; leave that alone if this version cannot read it."""
    spent = held.gpus * seconds
    try:
        usage = _with_seconds(fields.get("usage") or {}, held, spent, wasted=wasted)
    except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation):
        return dict(fields)
    return {**fields, "usage": usage}


def _with_seconds(usage: Mapping[str, Any], held: GpuTime, spent: int, *, wasted: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        **usage,
        "gpuSeconds": int(usage.get("gpuSeconds", 0)) + spent,
        "wastedGpuSeconds": int(usage.get("wastedGpuSeconds", 0)) + (spent if wasted else 0),
        "product": held.product[:MAXIMUM_PRODUCT],
    }
    cost = usage.get("cost")
    if held.price is None or (cost and cost["currency"] != held.price.currency):
        # Amounts of two currencies have no sum.
        return {**found, "unpricedGpuSeconds": int(usage.get("unpricedGpuSeconds", 0)) + spent}
    amount = amount_of(spent, held.price.per_gpu_hour)
    known = cost or {"amount": "0", "wasted": "0"}
    found["cost"] = {
        "amount": money(Decimal(known["amount"]) + amount),
        "wasted": money(Decimal(known["wasted"]) + (amount if wasted else 0)),
        "currency": held.price.currency,
    }
    return found
