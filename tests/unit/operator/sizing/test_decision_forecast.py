from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.cost.duration import Duration
from finetune_operator.sizing.cost.prices import Cost, parse_cost
from finetune_operator.sizing.cost.work import known_rows
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.decision_forecast import forecast_of

from tests.support.sizing_jobs import feasible, make_request, on_node, product

ROWS = known_rows(1000, 100, 2048, tokens=1_000_000)
PRICES = parse_cost({"currency": "USD", "prices": [{"product": "A100 80GB", "perGpuHour": 2}]})
A100 = product("NVIDIA A100 80GB")


def test_the_time_and_the_price_are_those_of_the_decided_number_of_gpus() -> None:
    hours = []
    for gpus in (1, 2):
        request = make_request({"effectiveBatchSize": 16}, resources={"gpus": gpus})
        offers = [replace(on_node(A100), count=gpus)]
        found = forecast_of(request, feasible(decide_training(request, offers)), ROWS, PRICES)
        assert isinstance(found.duration, Duration)
        assert isinstance(found.cost, Cost)
        spent = found.duration.gpu_hours(gpus).expected
        assert float(found.cost.expected) == pytest.approx(2 * spent, rel=0.01)
        hours.append(found.duration.seconds.expected)
    assert hours[1] < hours[0]


def test_a_family_without_a_formula_has_no_time() -> None:
    request = make_request()
    decision = feasible(decide_training(request, [on_node(A100)]))
    found = forecast_of(replace(request, shape=None), decision, ROWS, PRICES)
    assert found.duration == found.cost == "no speed is known for models of this family"


def test_no_time_is_known_without_the_rows() -> None:
    request = make_request()
    decision = feasible(decide_training(request, [on_node(A100)]))
    assert isinstance(forecast_of(request, decision, None, PRICES).duration, str)
