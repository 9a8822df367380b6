from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from finetune_operator.sizing.cost.duration import Duration
from finetune_operator.sizing.cost.prices import (
    Cost,
    CostError,
    CostSettings,
    amount_of,
    estimate_cost,
    money,
    parse_cost,
)
from finetune_operator.sizing.cost.work import Span
from finetune_operator.sizing.gpus.gpu import Offer
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sizing_jobs import product

PRICES = {
    "currency": "EUR",
    "prices": [
        {"product": "L4", "nodeLabels": {"pool": "spot"}, "perGpuHour": 0.3},
        {"product": "NVIDIA L4", "perGpuHour": "0.71"},
        {"nodeLabels": {"pool": "reserved"}, "perGpuHour": 2},
    ],
}


def offer(name: str = "NVIDIA L4", **labels: str) -> Offer:
    return Offer(product(name), "nvidia.com/gpu", 1, labels=labels)


def lasting(low: float, expected: float, high: float) -> Duration:
    return Duration(Span(low, expected, high), (), 1, 1, 1.0, "Published", "")


def settings(**changes: Any) -> CostSettings:
    return parse_cost({**PRICES, **changes})


def test_the_first_price_that_applies_counts() -> None:
    found = settings()
    price = {
        name: None if entry is None else entry.per_gpu_hour
        for name, entry in {
            "spot": found.price("NVIDIA L4", {"pool": "spot"}),
            "other": found.price("NVIDIA L4", {"pool": "on-demand"}),
            "any product": found.price("NVIDIA A100 80GB", {"pool": "reserved"}),
            "none": found.price("NVIDIA A100 80GB", {"pool": "spot"}),
        }.items()
    }
    assert price == {
        "spot": Decimal("0.3"),
        "other": Decimal("0.71"),
        "any product": Decimal(2),
        "none": None,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"currency": ""}, "cost.currency must be the ISO 4217 code"),
        ({"currency": "euro"}, "cost.currency"),
        ({"prices": [{"product": "L4", "perGpuHour": -1}]}, "perGpuHour"),
        ({"prices": [{"product": "L4", "perGpuHour": "cheap"}]}, "must be a price per GPU hour"),
        ({"prices": [{"product": "L4", "perGpuHour": True}]}, "must be a price per GPU hour"),
        ({"prices": [{"product": "L4", "perGpuHour": "NaN"}]}, "perGpuHour"),
        ({"prices": [{"product": "L4", "perGpuHour": 1, "currency": "USD"}]}, "prices.0.currency"),
        ({"prices": [{"product": "L4"}]}, "perGpuHour"),
        ({"labels": ["argocd.argoproj.io/instance"]}, "find their objects"),
        ({"labels": ["costCenter", "cost_center"]}, "different labels of a metric"),
        ({"speeds": [{"product": "L4"}]}, "speeds.0.teraflops"),
        ({"links": {"betweenNodes": 0}}, "cost.links.betweenNodes"),
        ({"links": {"nvlink": 300}}, "cost.links.nvlink"),
    ],
)
def test_a_price_list_that_cannot_be_right_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        settings(**changes)


def test_a_run_costs_its_gpu_hours_on_any_gpu_that_it_may_get() -> None:
    durations = [
        (offer(pool="spot"), lasting(1800, 3600, 7200)),
        (offer(), lasting(1800, 3600, 7200)),
    ]
    found = estimate_cost(durations, 2, settings(), "NVIDIA L4")
    assert isinstance(found, Cost)
    assert (found.low, found.expected, found.high) == (Decimal("0.3"), Decimal("0.6"), Decimal("2.84"))
    assert found.currency == "EUR"
    assert "0.71 EUR per GPU hour of NVIDIA L4" in found.reason


def test_a_missing_price_is_said_and_never_counts_as_nothing() -> None:
    a100 = (offer("NVIDIA A100 80GB"), lasting(1, 2, 3))
    assert estimate_cost([a100], 1, settings(), "NVIDIA A100 80GB") == (
        "the chart's cost.prices has no price for NVIDIA A100 80GB"
    )
    assert estimate_cost([a100], 1, CostSettings(), "") == "the chart's cost.prices is empty"
    both = estimate_cost([a100, (offer(), lasting(1, 2, 3))], 1, settings(), "NVIDIA A100 80GB")
    assert isinstance(both, Cost)
    assert "no price for NVIDIA A100 80GB" in both.reason


@given(seconds=st.integers(0, 10**11), price=st.decimals(0, 10**9, places=6))
def test_amounts_are_plain_decimals_within_the_bounds_of_the_status(seconds: int, price: Decimal) -> None:
    text = money(amount_of(seconds, price))
    assert "E" not in text
    assert len(text) <= 32
    assert abs(Decimal(text) - seconds * price / 3600) <= Decimal("0.000001")


def test_money_has_no_needless_digits() -> None:
    assert [money(Decimal(text)) for text in ("10.500000", "0.000000", "100", "1E+3")] == [
        "10.5",
        "0",
        "100",
        "1000",
    ]


def test_the_speeds_of_links_are_read() -> None:
    links = parse_cost({"links": {"withinNode": 200, "betweenNodes": 12.5}}).links
    assert (links.speed(1).expected, links.speed(2).expected) == (200e9, 12.5e9)
