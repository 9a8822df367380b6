"""The GPU time of a job and its recorded cost, from its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from finetune_cli.jobs.summary import gpu_count
from finetune_cli.jobs.timeline import timeline
from finetune_cli.text import moment

_HOUR = 3600


@dataclass(frozen=True)
class Usage:
    """GPU seconds, and the part in attempts that did not succeed.

    `amount` is their cost in `currency` by the prices that the operator has recorded; None if some time has no price.
    """

    seconds: float
    lost_seconds: float
    amount: Decimal | None
    currency: str | None


def usage(job: Mapping[str, Any], now: datetime) -> Usage:
    """Return what all attempts of TRAIN have used, including the running one.

    An operator before this version records no usage. Then the times of the listed attempts count, with their waits.
    """
    status = job.get("status") or {}
    running = (status.get("stage") or {}).get("gpuTime") or {}
    if "usage" not in status and not running:
        return _of_attempts(job, now)
    ended = status.get("usage") or {}
    seconds, lost = ended.get("gpuSeconds", 0), ended.get("wastedGpuSeconds", 0)
    cost = ended.get("cost") or {}
    amount = None if ended.get("unpricedGpuSeconds") else Decimal(cost.get("amount", 0))
    currency = cost.get("currency")
    start = moment(running.get("startTime"))
    if start is not None:
        held = max(0.0, ((moment(running.get("endTime")) or now) - start).total_seconds()) * running["gpus"]
        seconds += held
        price = running.get("pricePerGpuHour")
        same = currency in {None, running.get("currency")}
        amount = (
            amount + Decimal(str(held)) * Decimal(price) / _HOUR
            if amount is not None and price and same
            else None
        )
        currency = currency or running.get("currency")
    return Usage(seconds, lost, amount, currency)


def _of_attempts(job: Mapping[str, Any], now: datetime) -> Usage:
    attempts = [attempt for attempt in timeline(job) if attempt.stage == "Train"]
    gpus = gpu_count(job)
    used = sum(attempt.seconds(now) for attempt in attempts) * gpus
    lost = sum(each.seconds(now) for each in attempts if each.outcome in {"Failed", "Interrupted"}) * gpus
    return Usage(used, lost, None if used else Decimal(0), None)
