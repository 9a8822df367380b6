from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.plan import Layout
from finetune_operator.api.quantities import GIB
from finetune_operator.api.spec import Training
from finetune_operator.contract.memory_trace import MemoryTrace, SharedGroups
from finetune_operator.sizing.decision import Feasible, Infeasible, decide_training
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.ladder import OLDER_ABILITIES
from finetune_operator.sizing.parallelism import layouts, sharing_obstacle

from tests.support.memory_traces import memory_trace
from tests.support.sizing_jobs import RESOURCE, feasible, infeasible, make_request, mistral, sized

GROUPS = SharedGroups(
    layers=32,
    layer_bytes=1 << 27,
    dequantized_layer_bytes=1 << 29,
    embedding_bytes=1 << 26,
    head_bytes=1 << 26,
)


def machine(gibibytes: float, gpus: int = 2, name: str = "Sized") -> Offer:
    return Offer(sized(round(gibibytes * GIB), name), RESOURCE, gpus, node=f"{name}-{gibibytes}")


def decide(
    gibibytes: float, gpus: int = 2, *, offered: int | None = None, **training: Any
) -> Feasible | Infeasible:
    """Decide about Mistral-7B, whose replica needs 6 GiB, on so many GPUs of one machine."""
    request = make_request({"effectiveBatchSize": 16, **training}, resources={"gpus": gpus})
    return decide_training(request, [machine(gibibytes, offered or gpus)])


def reason(found: Feasible, name: str = "parallelism") -> str:
    (choice,) = [choice for choice in found.choices if choice.name == name]
    return choice.reason


def test_a_replica_comes_first_while_it_fits() -> None:
    found = feasible(decide(16))
    assert found.layout == Layout(1, 2, "DataParallel")
    assert found.plan.parallelism == "DataParallel"
    assert "a replica of the model fits each GPU" in reason(found)


def test_the_weights_are_shared_if_no_replica_fits() -> None:
    found = feasible(decide(5, 4))
    assert found.layout == Layout(1, 4, "FullyShard")
    assert found.plan.parallelism == "FullyShard"
    assert found.plan.weights == "Quantized", "GPUs exchange packed weights"
    assert "a replica needs" in reason(found)
    assert "each of 4 GPUs keeps a part" in reason(found)
    assert "gathered weights" in {term.name for term in found.estimate.terms}


def test_shared_weights_with_margin_come_before_a_borderline_replica() -> None:
    replica = infeasible(decide(3, parallelism="DataParallel")).estimate
    between = (replica.device_bytes + replica.high_bytes) / 2 / GIB
    assert feasible(decide(between, parallelism="DataParallel")).borderline
    found = feasible(decide(between))
    assert (found.layout.parallelism, found.borderline) == ("FullyShard", False)
    assert "a replica may need" in reason(found)


def test_a_larger_gpu_with_a_replica_comes_before_a_smaller_one_with_a_part() -> None:
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 2})
    found = feasible(decide_training(request, [machine(5), machine(16)]))
    assert (found.layout.parallelism, found.gpu.usable_bytes) == ("DataParallel", 16 * GIB)


@pytest.mark.parametrize("asked", ["DataParallel", "FullyShard"])
def test_a_given_value_is_kept(asked: str) -> None:
    found = feasible(decide(24, parallelism=asked))
    assert found.layout.parallelism == asked
    assert "parallelism" not in {choice.name for choice in found.choices}


def test_a_given_replica_that_does_not_fit_is_refused() -> None:
    found = infeasible(decide(4, 4, parallelism="DataParallel"))
    assert found.reason == "DoesNotFit"
    assert "A replica of the model must fit on each of 4 GPUs." in found.message


def test_one_gpu_is_asked_for_nothing() -> None:
    found = feasible(decide(24, 1))
    assert found.layout == Layout()
    assert "parallelism" not in {choice.name for choice in found.choices}


def test_a_refusal_says_how_many_gpus_would_share_the_weights() -> None:
    found = infeasible(decide(4.2, 1, offered=8))
    assert "With resources.gpus: 4, GPUs share the weights, and the job needs" in found.message
    # So the job is accepted with that number, and not with fewer.
    assert feasible(decide(4.2, 4, offered=8)).layout.parallelism == "FullyShard"
    assert not isinstance(decide(4.2, 2, offered=8), Feasible)


@pytest.mark.parametrize(
    ("offered", "training"),
    [
        (1, {}),
        (8, {"parallelism": "DataParallel"}),
        (8, {"lora": {"variant": "DoRA"}}),
        (8, {"effectiveBatchSize": 2}),
    ],
    ids=["no more GPUs", "replicas asked for", "DoRA", "no rows for more"],
)
def test_a_refusal_promises_no_gpus_that_would_not_help(offered: int, training: dict[str, Any]) -> None:
    assert "GPUs share the weights" not in infeasible(decide(4.2, 1, offered=offered, **training)).message


def test_dora_is_never_shared() -> None:
    found = decide(5, 4, lora={"variant": "DoRA"})
    assert "A replica of the model" in infeasible(found).message


def test_a_trainer_that_may_be_too_old_gets_replicas_unless_the_user_asks() -> None:
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 4})
    older = replace(request, trainer=replace(OLDER_ABILITIES, shares_weights=False))
    assert infeasible(decide_training(older, [machine(5, 4)])).plan.parallelism == "DataParallel"
    found = layouts(Training(parallelism="FullyShard"), Layout(1, 2), None, known=False)
    assert found == (Layout(1, 2, "FullyShard"),)


def trace(**changes: Any) -> MemoryTrace:
    return MemoryTrace.model_validate(memory_trace(6, 2048, **changes))


def test_only_a_trace_tells_if_a_model_of_an_unknown_family_can_be_shared() -> None:
    training = Training()
    assert sharing_obstacle(training, mistral(), None) is None
    assert sharing_obstacle(training, None, trace(sharing=GROUPS)) is None
    assert "cannot be gathered one by one" in (sharing_obstacle(training, None, trace()) or "")


def test_a_model_that_cannot_be_shared_is_refused_with_a_remedy() -> None:
    request = make_request({"effectiveBatchSize": 16, "parallelism": "FullyShard"}, resources={"gpus": 2})
    found = infeasible(decide_training(replace(request, shape=None, trace=trace()), [machine(80)]))
    assert found.reason == "UnsupportedModel"
    assert found.message.endswith("training.parallelism DataParallel.")


def test_an_unknown_family_is_shared_by_its_trace() -> None:
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 4})
    traced = replace(request, shape=None, trace=trace(sharing=GROUPS))
    found = feasible(decide_training(traced, [machine(6, 4)]))
    assert found.layout.parallelism == "FullyShard"
    (layers,) = {term.bytes for term in found.estimate.terms if term.name == "quantized weights"}
    assert layers == (6 << 29) // 4


def test_gpus_without_a_name_of_their_own_are_named_by_the_reason() -> None:
    offers = [Offer(Gpu("NVIDIA L4", "Nvidia", 5 * GIB), RESOURCE, 4, node="node")]
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 4})
    assert "NVIDIA L4 has 5.00 GiB" in reason(feasible(decide_training(request, offers)))
