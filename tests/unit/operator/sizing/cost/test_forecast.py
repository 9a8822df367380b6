from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.duration import Duration
from finetune_operator.sizing.cost.forecast import Forecast, forecast, shown_cost, shown_duration
from finetune_operator.sizing.cost.prices import Cost, CostSettings, parse_cost
from finetune_operator.sizing.cost.work import Rows, known_rows
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.operator import CONFIG, make_spec
from tests.support.sizing_jobs import product

ROWS = known_rows(1000, 100, 512, tokens=300_000)
PRICES = parse_cost({"currency": "USD", "prices": [{"product": "L4", "perGpuHour": 1}]})
L4, A100 = product("NVIDIA L4"), product("NVIDIA A100 80GB")


def offer(gpu: Gpu) -> Offer:
    return Offer(gpu, "nvidia.com/gpu", 1)


def forecast_of(
    *offers: Offer, rows: Rows | None = ROWS, cost: CostSettings = PRICES, gpu: Gpu = L4
) -> Forecast:
    spec = FineTuneJobSpec.parse(make_spec())
    plan = TrainingPlan(512, 2, 8, gradient_checkpointing=False)
    return forecast(spec, model_shape(CONFIG), plan, gpu, offers, rows, cost)


def known(found: Forecast) -> Duration:
    assert isinstance(found.duration, Duration)
    return found.duration


def test_the_bounds_span_every_gpu_and_the_expectation_is_that_of_the_plan() -> None:
    alone, other = known(forecast_of(offer(L4))), known(forecast_of(offer(A100), gpu=A100))
    both = known(forecast_of(offer(A100), offer(L4)))
    assert both.seconds.expected == alone.seconds.expected
    assert both.seconds.low == min(alone.seconds.low, other.seconds.low)
    assert both.seconds.high == max(alone.seconds.high, other.seconds.high)


def test_without_rows_nothing_is_estimated() -> None:
    found = forecast_of(offer(L4), rows=None)
    assert found.duration == found.cost == "the number of training rows is not known"


def test_a_product_without_a_speed_is_named_with_the_remedy() -> None:
    unknown = replace(L4, product="ACME X1")
    found = forecast_of(offer(unknown), gpu=unknown)
    assert found.duration == "no speed of ACME X1 is published or measured; add it to the chart's cost.speeds"
    assert found.cost == found.duration


def test_a_shared_gpu_may_take_longer() -> None:
    shared = replace(offer(L4), sharing="TimeSlicing", replicas=4)
    alone, found = known(forecast_of(offer(L4))), known(forecast_of(shared))
    assert found.seconds.high > alone.seconds.high
    assert found.seconds.low == alone.seconds.low
    mig = replace(offer(L4), sharing="Mig", replicas=4)
    assert known(forecast_of(mig)).seconds == alone.seconds


def test_status_has_whole_seconds_and_decimal_text() -> None:
    found = forecast_of(offer(L4))
    shown = shown_duration(known(found), 1)
    assert shown["lowSeconds"] <= shown["expectedSeconds"] <= shown["highSeconds"]
    assert all(isinstance(shown[name], int) for name in ("lowSeconds", "steps", "tokens"))
    assert float(shown["gpuHours"]) > 0
    assert isinstance(found.cost, Cost)
    cost = shown_cost(found.cost)
    assert Decimal(cost["low"]) <= Decimal(cost["expected"]) <= Decimal(cost["high"])
    assert cost["currency"] == "USD"
