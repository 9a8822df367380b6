"""`finetune cost`: the GPU time of jobs, from their status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import click
from finetune_client.client import Client

from finetune_cli.errors import UsageError
from finetune_cli.jobs.summary import summary
from finetune_cli.jobs.usage import Usage, usage
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
        ("finetune cost support-bot", "What did a job cost?"),
        ("finetune cost support-bot --price 2.49 --currency EUR", "What would it cost at another price?"),
        ("finetune cost -A -l team=search -o json", "GPU hours of a team, for another program."),
    ),
)
@click.argument("names", metavar="[JOB]...", nargs=-1, shell_complete=complete_job)
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of all namespaces.")
@click.option("-l", "--selector", metavar="LABELS", help="Label selector, such as team=search.")
@click.option(
    "--price", type=_Price(), metavar="AMOUNT", help="Price of one GPU hour, in place of the recorded ones."
)
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
    """Print the GPU hours of jobs, and their cost.

    The cost is that of the prices that the operator has recorded, or of --price. Hours count while a trainer of TRAIN runs.
    Hours of attempts that failed or were interrupted are listed as well. A job of an operator that records no hours has
    those of its last 20 attempts, with their waits.
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
    """Return the GPU hours and the cost of each job and in total (contract/cli.schema.json).

    Without a price, the cost is the recorded one. The total has no cost if the jobs have several currencies, or if one of
    them lacks a price.
    """
    used = [usage(job, now) for job in jobs]
    found = [
        {**_identity(job), **_hours(each), **_cost(each, price, currency)}
        for job, each in zip(jobs, used, strict=True)
    ]
    currencies = {each.currency for each in used if each.currency is not None}
    common = next(iter(currencies)) if len(currencies) == 1 else None
    amounts = [each.amount for each in used]
    total = Usage(
        sum(each.seconds for each in used),
        sum(each.lost_seconds for each in used),
        None if None in amounts or common is None else sum((each for each in amounts if each), Decimal(0)),
        common,
    )
    return {
        "pricePerGpuHour": None if price is None else str(price),
        "currency": currency if price is not None else common,
        "jobs": found,
        "total": {**_hours(total), **_cost(total, price, currency)},
    }


def gpu_hours(job: Mapping[str, Any], now: datetime) -> float:
    """Return the GPU hours of all attempts of TRAIN."""
    return _hours(usage(job, now))["gpuHours"]


def _identity(job: Mapping[str, Any]) -> dict[str, Any]:
    facts = summary(job)
    return {name: facts[name] for name in ("namespace", "name", "phase", "gpu", "gpus")}


def _hours(used: Usage) -> dict[str, float]:
    return {
        "gpuHours": round(used.seconds / _HOUR, 4),
        "lostGpuHours": round(used.lost_seconds / _HOUR, 4),
    }


def _cost(used: Usage, price: Decimal | None, currency: str | None) -> dict[str, str | None]:
    """The cost at the given price, or the recorded one; with its currency."""
    if price is not None:
        amount = Decimal(str(round(used.seconds / _HOUR, 4))) * price
        return {"cost": str(amount.quantize(_CENT, ROUND_HALF_UP)), "currency": currency}
    if used.amount is None or used.currency is None:
        return {"cost": None, "currency": None}
    return {"cost": str(used.amount.quantize(_CENT, ROUND_HALF_UP)), "currency": used.currency}


def table(result: Mapping[str, Any], *, namespaces: bool) -> str:
    """Return the document as a table with a line of totals."""
    priced = any(job["cost"] is not None for job in result["jobs"])
    header = [*(["NAMESPACE"] if namespaces else []), "NAME", "PHASE", "GPU", "GPUS", "GPU-HOURS", "LOST"]
    header += [f"COST {result['currency'] or ''}".rstrip()] if priced else []
    rows = []
    for job in result["jobs"]:
        names = [job["namespace"], job["name"]] if namespaces else [job["name"]]
        hours = [f"{job['gpuHours']:.2f}", f"{job['lostGpuHours']:.2f}"]
        shown = [_shown(job, result["currency"])] if priced else []
        rows.append([*names, job["phase"], job["gpu"], job["gpus"], *hours, *shown])
    total = result["total"]
    blank = [""] * (4 if namespaces else 3)
    end = [
        f"{total['gpuHours']:.2f}",
        f"{total['lostGpuHours']:.2f}",
        *([total["cost"] or ""] if priced else []),
    ]
    return "\n".join(columns(header, [*rows, ["TOTAL", *blank, *end]])) + "\n"


def _shown(job: Mapping[str, Any], currency: str | None) -> str:
    """The cost of a job, with its currency if the header has none."""
    if job["cost"] is None:
        return ""
    return job["cost"] if currency or not job["currency"] else f"{job['cost']} {job['currency']}"
