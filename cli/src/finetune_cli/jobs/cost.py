"""`finetune cost`: the GPU time of jobs, from their status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import click
from finetune_client.client import Client

from finetune_cli.errors import UsageError
from finetune_cli.jobs.summary import gpu_count, summary
from finetune_cli.jobs.timeline import timeline
from finetune_cli.options import Command, cluster_options, complete_job, echo, output_option
from finetune_cli.text import columns, print_document

_HOUR = 3600
_CENT = Decimal("0.01")


class _Price(click.ParamType[Decimal]):
    """An amount of money for one GPU hour."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Read a decimal number that is not negative."""
        try:
            price = Decimal(str(value))
        except ArithmeticError:
            price = Decimal(-1)
        if not price.is_finite() or price < 0:
            self.fail(f"must be a number of at least 0, found {value!r}", param, ctx)
        return price


@click.command(
    "cost",
    cls=Command,
    examples=(
        ("finetune cost support-bot --price 2.49 --currency EUR", "What did a job cost?"),
        ("finetune cost -A -l team=search -o json", "GPU hours of a team, for another program."),
    ),
)
@click.argument("names", metavar="[JOB]...", nargs=-1, shell_complete=complete_job)
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of all namespaces.")
@click.option("-l", "--selector", metavar="LABELS", help="Label selector, such as team=search.")
@click.option("--price", type=_Price(), metavar="AMOUNT", help="Price of one GPU hour.")
@click.option("--currency", metavar="CODE", help="Currency of the price, such as EUR.")
@output_option("json", "yaml")
@cluster_options
def cost(
    client: Client,
    names: Sequence[str],
    *,
    all_namespaces: bool,
    selector: str | None,
    price: Decimal | None,
    currency: str | None,
    output: str | None,
) -> None:
    """Print the GPU hours of jobs, and their cost if a price is given.

    The time of an attempt of TRAIN counts from its start, which includes the wait for a node, to its end. Hours of attempts
    that failed or were interrupted are listed as well. The status has the last 20 attempts.
    """
    if currency is not None and price is None:
        raise UsageError("--currency must have a --price, found none")
    if names and (all_namespaces or selector is not None):
        raise UsageError("the jobs must be chosen by name or by -A and -l, found both")
    jobs = [client.get(name) for name in names] or client.list(selector, all_namespaces=all_namespaces)
    result = document(jobs, datetime.now(UTC), price, currency)
    if output is None:
        echo(table(result, namespaces=all_namespaces))
    else:
        print_document(result, output)


def document(
    jobs: Sequence[Mapping[str, Any]], now: datetime, price: Decimal | None, currency: str | None
) -> dict[str, Any]:
    """Return the GPU hours and the cost of each job and in total (contract/cli.schema.json)."""
    found = [{**_identity(job), **_usage(job, now)} for job in jobs]
    total = {
        "gpuHours": round(sum(job["gpuHours"] for job in found), 4),
        "lostGpuHours": round(sum(job["lostGpuHours"] for job in found), 4),
    }
    return {
        "pricePerGpuHour": None if price is None else str(price),
        "currency": currency,
        "jobs": [{**job, "cost": _cost(job["gpuHours"], price)} for job in found],
        "total": {**total, "cost": _cost(total["gpuHours"], price)},
    }


def gpu_hours(job: Mapping[str, Any], now: datetime) -> float:
    """Return the GPU hours of all attempts of TRAIN."""
    hours: float = _usage(job, now)["gpuHours"]
    return hours


def _identity(job: Mapping[str, Any]) -> dict[str, Any]:
    facts = summary(job)
    return {name: facts[name] for name in ("namespace", "name", "phase", "gpu", "gpus")}


def _usage(job: Mapping[str, Any], now: datetime) -> dict[str, float]:
    attempts = [attempt for attempt in timeline(job) if attempt.stage == "Train"]
    used = sum(attempt.seconds(now) for attempt in attempts)
    lost = sum(attempt.seconds(now) for attempt in attempts if attempt.outcome in {"Failed", "Interrupted"})
    each = gpu_count(job) / _HOUR
    return {"gpuHours": round(used * each, 4), "lostGpuHours": round(lost * each, 4)}


def _cost(hours: float, price: Decimal | None) -> str | None:
    return None if price is None else str((Decimal(str(hours)) * price).quantize(_CENT, ROUND_HALF_UP))


def table(result: Mapping[str, Any], *, namespaces: bool) -> str:
    """Return the document as a table with a line of totals."""
    priced = result["pricePerGpuHour"] is not None
    header = [*(["NAMESPACE"] if namespaces else []), "NAME", "PHASE", "GPU", "GPUS", "GPU-HOURS", "LOST"]
    header += [f"COST {result['currency'] or ''}".rstrip()] if priced else []
    rows = []
    for job in result["jobs"]:
        names = [job["namespace"], job["name"]] if namespaces else [job["name"]]
        hours = [f"{job['gpuHours']:.2f}", f"{job['lostGpuHours']:.2f}"]
        rows.append(
            [*names, job["phase"], job["gpu"], job["gpus"], *hours, *([job["cost"]] if priced else [])]
        )
    total = result["total"]
    blank = [""] * (4 if namespaces else 3)
    end = [f"{total['gpuHours']:.2f}", f"{total['lostGpuHours']:.2f}", *([total["cost"]] if priced else [])]
    return "\n".join(columns(header, [*rows, ["TOTAL", *blank, *end]])) + "\n"
