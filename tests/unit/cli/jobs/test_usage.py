from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from finetune_cli.jobs.usage import Usage, usage

from tests.support.cli_jobs import NOW, cli_job, succeeded

RECORDED = {
    "gpuSeconds": 7200,
    "wastedGpuSeconds": 1800,
    "product": "NVIDIA L4",
    "cost": {"amount": "1.42", "wasted": "0.355", "currency": "EUR"},
}


def running(seconds: float, **changes: Any) -> dict[str, Any]:
    """The time of a pod that has run for so long."""
    started = (NOW - timedelta(seconds=seconds)).isoformat()
    pod = {"startTime": started, "gpus": 2, "pricePerGpuHour": "0.5", "currency": "EUR", **changes}
    return {"name": "Train", "attempt": 1, "gpuTime": pod}


def test_recorded_time_and_cost_come_before_the_times_of_attempts() -> None:
    assert usage(succeeded(usage=RECORDED), NOW) == Usage(7200, 1800, Decimal("1.42"), "EUR")


def test_a_running_pod_counts_until_now_with_its_price() -> None:
    job = cli_job(usage=RECORDED, stage=running(3600))
    assert usage(job, NOW) == Usage(14_400, 1800, Decimal("2.42"), "EUR")
    first = cli_job(stage=running(3600))
    assert usage(first, NOW) == Usage(7200, 0, Decimal(1), "EUR")


def test_a_pod_that_has_ended_counts_until_its_end() -> None:
    ended = running(3600, endTime=(NOW - timedelta(seconds=1800)).isoformat())
    assert usage(cli_job(stage=ended), NOW).seconds == 3600


def test_time_without_a_price_or_in_two_currencies_has_no_cost() -> None:
    partly = {**RECORDED, "unpricedGpuSeconds": 60}
    assert usage(cli_job(usage=partly), NOW).amount is None
    dollars = cli_job(usage=RECORDED, stage=running(60, currency="USD"))
    assert usage(dollars, NOW).amount is None
    unpriced = cli_job(stage={"gpuTime": {"startTime": NOW.isoformat(), "gpus": 1}})
    assert usage(unpriced, NOW).amount is None


def test_without_a_record_the_listed_attempts_count_and_cost_is_not_known() -> None:
    found = usage(succeeded(), NOW)
    assert (found.seconds, found.lost_seconds, found.amount) == (900, 180, None)
    assert usage(cli_job(), NOW) == Usage(0, 0, Decimal(0), None)
