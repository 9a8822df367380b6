from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.plan import Layout
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.memory.estimate import estimate

from tests.support.memory_traces import memory_trace
from tests.support.sizing_jobs import make_request

SHARED = Layout(1, 4, "FullyShard")


def test_every_rung_shares_the_model_as_the_layout_says() -> None:
    request = replace(make_request({"effectiveBatchSize": 16}), layout=SHARED)
    assert {(rung.plan.ranks, rung.plan.parallelism) for rung in request.ladder(None)} == {(4, "FullyShard")}


def test_shared_weights_are_estimated_by_the_closed_form_if_there_is_one() -> None:
    trace = MemoryTrace.model_validate(memory_trace(30, 2048))
    request = replace(make_request({"effectiveBatchSize": 16}), trace=trace)
    plan = replace(request.frugal(None).plan, ranks=4)
    assert request.estimator(None)(plan) != estimate(request.shape, plan, request.stack)  # type: ignore[arg-type]
    shared = replace(plan, parallelism="FullyShard")
    assert request.estimator(None)(shared) == estimate(request.shape, shared, request.stack)  # type: ignore[arg-type]


def test_gpus_that_share_weights_exchange_packed_ones() -> None:
    request = make_request({"effectiveBatchSize": 16})
    assert request.abilities.weights == ("Dequantized", "Quantized")
    assert replace(request, layout=SHARED).abilities.weights == ("Quantized",)
