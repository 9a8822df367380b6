"""`finetune cost`: the GPU time of jobs and its cost, from their status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import click

from finetune_cli.cluster.client import Client
from finetune_cli.errors import UsageError
from finetune_cli.jobs.summary import summary
from finetune_cli.options import (
    Command,
    cluster_options,
    complete_job,
    echo,
    output_option,
    selection_options,
)
from finetune_cli.text import columns, number, print_document

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
        ("finetune cost -A --price 2.49 --currency EUR", "All jobs, at another price."),
        ("finetune cost -A -l team=search -o json", "GPU hours of a team, for another program."),
    ),
)
@click.argument("names", metavar="[JOB]...", nargs=-1, shell_complete=complete_job)
@selection_options
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
    """Print the GPU hours and the cost of jobs, beside the estimates.

    Hours and cost are those that the operator has measured (status.usage), with the prices of the chart. --price replaces
    these prices. Lost hours are those of attempts and pods that did not succeed. A running attempt counts when it has ended.
    """
    if currency is not None and price is None:
        raise UsageError("--currency must have a --price, found none")
    if names and (all_namespaces or selector is not None):
        raise UsageError("the jobs must be chosen by name or by -A and -l, found both")
    jobs = [client.get(name) for name in names] or client.list(selector, all_namespaces=all_namespaces)
    result = document(jobs, price, currency)
    if output is None:
        echo(table(result, namespaces=all_namespaces))
    else:
        print_document(result, output)


def document(
    jobs: Sequence[Mapping[str, Any]], price: Decimal | None, currency: str | None
) -> dict[str, Any]:
    """Return the GPU hours and the cost of each job and in total (contract/cli.schema.json)."""
    found = [_job(job, price, currency) for job in jobs]
    amounts: dict[str | None, Decimal] = {}
    for job in found:
        if job["cost"] is not None:
            amounts[job["currency"]] = amounts.get(job["currency"], Decimal(0)) + Decimal(job["cost"])
    return {
        "pricePerGpuHour": None if price is None else str(price),
        "jobs": found,
        "total": {
            "gpuHours": round(sum(job["gpuHours"] for job in found), 4),
            "lostGpuHours": round(sum(job["lostGpuHours"] for job in found), 4),
            # Amounts in different currencies have no sum.
            "costs": [{"cost": str(amount), "currency": unit} for unit, amount in amounts.items()],
        },
    }


def gpu_hours(job: Mapping[str, Any]) -> float:
    """Return the GPU hours that the operator has measured."""
    return _hours(_status(job, "usage").get("gpuSeconds"))


def _job(job: Mapping[str, Any], price: Decimal | None, currency: str | None) -> dict[str, Any]:
    facts, usage, plan = summary(job), _status(job, "usage"), _status(job, "plan")
    hours = gpu_hours(job)
    measured = usage.get("cost") or {}
    cost = measured.get("amount") if price is None else _money(hours, price)
    return {
        **{name: facts[name] for name in ("namespace", "name", "phase")},
        "gpu": usage.get("product") or facts["gpu"],
        "gpus": facts["gpus"],
        "gpuHours": hours,
        "lostGpuHours": _hours(usage.get("wastedGpuSeconds")),
        "estimatedGpuHours": number((plan.get("duration") or {}).get("gpuHours")),
        "cost": cost,
        "currency": None if cost is None else (measured.get("currency") if price is None else currency),
    }


def _status(job: Mapping[str, Any], member: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (job.get("status") or {}).get(member) or {}
    return found


def _hours(seconds: Any) -> float:
    return round((seconds or 0) / _HOUR, 4)


def _money(hours: float, price: Decimal) -> str:
    return str((Decimal(str(hours)) * price).quantize(_CENT, ROUND_HALF_UP))


def table(result: Mapping[str, Any], *, namespaces: bool) -> str:
    """Return the document as a table with a line of totals."""
    header = [
        *(["NAMESPACE"] if namespaces else []),
        "NAME",
        "PHASE",
        "GPU",
        "GPUS",
        "ESTIMATE",
        "GPU-HOURS",
        "LOST",
        "COST",
    ]
    rows = []
    for job in result["jobs"]:
        names = [job["namespace"], job["name"]] if namespaces else [job["name"]]
        estimate = None if job["estimatedGpuHours"] is None else f"{job['estimatedGpuHours']:.2f}"
        hours = [estimate, f"{job['gpuHours']:.2f}", f"{job['lostGpuHours']:.2f}"]
        rows.append([*names, job["phase"], job["gpu"], job["gpus"], *hours, _amount(job)])
    total = result["total"]
    blank = [""] * (5 if namespaces else 4)
    sums = [f"{total['gpuHours']:.2f}", f"{total['lostGpuHours']:.2f}"]
    costs = " + ".join(filter(None, map(_amount, total["costs"]))) or None
    return "\n".join(columns(header, [*rows, ["TOTAL", *blank, *sums, costs]])) + "\n"


def _amount(item: Mapping[str, Any]) -> str | None:
    return None if item["cost"] is None else f"{item['cost']} {item['currency'] or ''}".rstrip()
