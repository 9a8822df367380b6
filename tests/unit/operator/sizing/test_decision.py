"""Decisions about a job: feasible with a plan and GPUs, or infeasible with a message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.plan import Optimizer
from finetune_operator.sizing.decision import decide_training, smallest_product
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.gpus.products import PRODUCTS
from finetune_operator.sizing.ladder import ABILITIES, OLDER_ABILITIES, Abilities
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackOptimizer
from finetune_operator.sizing.planning import make_plan
from finetune_operator.sizing.request import SHORTEST_LENGTH

from tests.support.sizing_jobs import feasible, infeasible, make_request, make_spec, on_node, product, sized

SMALL, LARGE = "NVIDIA L4", "NVIDIA A100 80GB"


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA L4"])
def test_a_7b_job_fits_a_24_gb_card_with_margin_and_gives_reasons(name: str) -> None:
    decision = feasible(decide_training(make_request({"effectiveBatchSize": 16}), [on_node(product(name))]))
    usable = product(name).usable_bytes
    assert usable is not None
    assert decision.estimate.high_bytes <= usable
    assert not decision.borderline
    assert decision.plan.effective_batch_size == 16
    assert {choice.name for choice in decision.choices} == {
        "microBatchSize",
        "gradientAccumulationSteps",
        "gradientCheckpointing",
        "optimizer",
        "weights",
        "sequenceLength",
        "gpu",
    }
    assert all(choice.reason for choice in decision.choices)


def test_the_smallest_sufficient_gpu_decides_and_larger_ones_are_offered() -> None:
    offers = [on_node(product(name), name) for name in (LARGE, SMALL, "NVIDIA A40")]
    decision = feasible(decide_training(make_request(), offers))
    assert decision.gpu.product == SMALL
    assert {offer.node for offer in decision.offers} == {LARGE, SMALL, "NVIDIA A40"}
    alone = feasible(decide_training(make_request(), [on_node(product(LARGE))]))
    assert alone.plan.micro_batch_size >= decision.plan.micro_batch_size


def test_a_gpu_that_is_too_small_is_left_out_of_the_offers() -> None:
    ladder = make_request().ladder(None)
    tiny = sized(ladder[-1].estimate.device_bytes - 1, "Tiny")
    decision = feasible(
        decide_training(make_request(), [on_node(tiny, "tiny"), on_node(product(LARGE), "large")])
    )
    assert [offer.node for offer in decision.offers] == ["large"]


def test_a_rung_with_margin_is_preferred_to_a_faster_one_without() -> None:
    ladder = make_request().ladder(None)
    # The last rung needs as much as the one before, and each pair of values has two optimizers.
    faster, slower = ladder[-4], ladder[-3]
    assert faster.plan.micro_batch_size > slower.plan.micro_batch_size
    assert slower.estimate.high_bytes < faster.estimate.high_bytes
    gpu = sized(faster.estimate.high_bytes - 1)
    assert faster.fits(gpu.usable_bytes or 0)
    decision = feasible(decide_training(make_request(), [on_node(gpu)]))
    assert decision.plan == slower.plan
    reason = next(choice.reason for choice in decision.choices if choice.name == "microBatchSize")
    assert f"micro-batch {faster.plan.micro_batch_size} may need" in reason


def test_a_borderline_fit_is_taken_only_if_nothing_has_margin() -> None:
    last = make_request().ladder(None)[-1]
    tight = sized(last.estimate.device_bytes, "Tight")
    decision = feasible(decide_training(make_request(), [on_node(tight)]))
    assert decision.borderline
    assert decision.plan == last.plan
    assert any("borderline" in choice.reason for choice in decision.choices)
    roomy = sized(last.estimate.high_bytes, "Roomy")
    better = feasible(decide_training(make_request(), [on_node(tight, "tight"), on_node(roomy, "roomy")]))
    assert not better.borderline
    assert [offer.node for offer in better.offers] == ["roomy"]


def test_one_byte_too_little_is_too_little() -> None:
    last = make_request().ladder(None)[-1]
    assert (
        infeasible(decide_training(make_request(), [on_node(sized(last.estimate.device_bytes - 1))])).reason
        == "DoesNotFit"
    )


def test_values_that_the_user_set_are_not_choices() -> None:
    given = make_request({"microBatchSize": 2, "gradientCheckpointing": "Require"})
    decision = feasible(decide_training(given, [on_node(product(SMALL))]))
    assert (decision.plan.micro_batch_size, decision.plan.gradient_checkpointing) == (2, True)
    names = {choice.name for choice in decision.choices}
    assert not names & {"microBatchSize", "gradientCheckpointing"}


def test_right_sizing_forbidden_uses_the_same_values_on_every_gpu() -> None:
    fixed = make_request(resources={"rightSize": "Forbid"})
    small = feasible(decide_training(fixed, [on_node(product(SMALL))]))
    large = feasible(decide_training(fixed, [on_node(product(LARGE))]))
    assert small.plan == large.plan
    reason = next(choice.reason for choice in small.choices if choice.name == "microBatchSize")
    assert "rightSize" in reason


def test_before_the_data_is_known_only_impossible_jobs_are_rejected() -> None:
    first = make_request(length=None)
    assert feasible(decide_training(first, [on_node(product(SMALL))])).plan.sequence_length == SHORTEST_LENGTH
    weights = next(term for term in first.ladder(None)[-1].estimate.terms if term.bytes)
    assert infeasible(decide_training(first, [on_node(sized(weights.bytes))])).reason == "DoesNotFit"
    least = first.ladder(None)[-1].estimate.high_bytes
    decided = decide_training(first, [on_node(sized(least))])
    assert feasible(decided)
    later = replace(first, sequence_length=2048)
    assert infeasible(decide_training(later, [on_node(sized(least))])).reason == "DoesNotFit"


def test_a_gpu_that_is_not_ready_yet_still_counts() -> None:
    for state in ("Cordoned", "NotReady", "Provisioning"):
        assert feasible(decide_training(make_request(), [on_node(product(SMALL), state=state)])).offers


def test_no_gpu_at_all_does_not_fit_and_names_what_would() -> None:
    decision = infeasible(decide_training(make_request(), []))
    assert decision.reason == "DoesNotFit"
    assert "nvidia.com/gpu" in decision.message
    assert decision.smallest is not None
    assert decision.smallest.product in decision.message


def test_a_gpu_that_the_image_does_not_run_on_is_not_called_too_small() -> None:
    old = Gpu("Old", "Nvidia", 80 << 30, compute_capability=(7, 0))
    decision = infeasible(decide_training(make_request(), [on_node(old)]))
    assert decision.reason == "GpuNotSupported"
    assert "7.0" in decision.message
    both = decide_training(make_request(), [on_node(old, "old"), on_node(product(SMALL), "new")])
    assert [offer.node for offer in feasible(both).offers] == ["new"]


def test_a_gpu_of_unknown_size_is_not_called_too_small() -> None:
    unknown = on_node(sized(None, "Mystery"), "node-7")
    decision = infeasible(decide_training(make_request(), [unknown, on_node(sized(1 << 30))]))
    assert decision.reason == "GpuMemoryUnknown"
    assert "node-7" in decision.message
    assert "gpuProfiles" in decision.message
    known = decide_training(make_request(), [unknown, on_node(product(SMALL), "known")])
    assert [offer.node for offer in feasible(known).offers] == ["known"]


def test_gpus_that_the_job_may_not_use_are_named_with_the_reason() -> None:
    picky = make_request(resources={"nodeSelector": {"team": "a"}})
    offer = on_node(product(SMALL), "node-3", labels={"team": "b"})
    decision = infeasible(decide_training(picky, [offer]))
    assert decision.reason == "DoesNotFit"
    assert "node-3" in decision.message
    assert "team" in decision.message
    admitted = replace(offer, labels={"team": "a"})
    assert feasible(decide_training(picky, [admitted])).offers == (admitted,)


def test_a_cpu_job_is_sized_for_its_gpu_but_runs_without_checkpointing() -> None:
    offers = [on_node(product(SMALL))]
    on_cpu = feasible(decide_training(make_request(device="cpu"), offers))
    on_gpu = feasible(decide_training(make_request(), offers))
    assert on_cpu.estimate == on_gpu.estimate
    assert (on_cpu.plan.optimizer, on_cpu.plan.weights) == ("AdamW", "Quantized")
    assert on_cpu.plan == replace(on_gpu.plan, gradient_checkpointing=False)
    (reason,) = (choice.reason for choice in on_cpu.choices if choice.name == "gradientCheckpointing")
    assert "cpu" in reason


def test_the_decided_values_become_the_plan_that_train_gets() -> None:
    decision = feasible(decide_training(make_request(), [on_node(product(SMALL))]))
    plan = make_plan(make_spec(), "cuda", decision.plan, decision.choices)
    assert plan.micro_batch_size == decision.plan.micro_batch_size
    assert plan.gradient_checkpointing == decision.plan.gradient_checkpointing
    assert {choice.name for choice in plan.choices} == {choice.name for choice in decision.choices} | {
        "epochs"
    }


def test_the_smallest_product_is_the_first_of_the_table_with_room() -> None:
    wanted = make_request({"microBatchSize": 2, "gradientCheckpointing": "Forbid"})
    found = smallest_product(wanted)
    assert found is not None
    assert found.usable_bytes is not None
    need = wanted.ladder(found)[-1].estimate.high_bytes
    assert need <= found.usable_bytes
    smaller = [
        gpu for gpu in PRODUCTS if gpu.usable_bytes is not None and gpu.usable_bytes < found.usable_bytes
    ]
    for gpu in smaller:
        supported = gpu.vendor == "Nvidia" and (gpu.compute_capability or (8, 0)) >= (8, 0)
        assert not supported or wanted.ladder(gpu)[-1].estimate.high_bytes > (gpu.usable_bytes or 0)


def test_the_rungs_after_the_decided_one_keep_the_order_of_the_ladder() -> None:
    request = make_request()
    decision = feasible(decide_training(request, [on_node(product(SMALL))]))
    plans = [rung.plan for rung in request.ladder(decision.gpu)]
    assert [decision.plan, *decision.frugal] == plans[plans.index(decision.plan) :]
    forced = feasible(
        decide_training(make_request(resources={"rightSize": "Forbid"}), [on_node(product(SMALL))])
    )
    assert forced.frugal == ()


def test_a_trainer_without_a_choice_of_optimizers_keeps_the_one_it_has() -> None:
    request = make_request(trainer=OLDER_ABILITIES)
    decision = feasible(decide_training(request, [on_node(product(LARGE))]))
    assert {plan.optimizer for plan in (decision.plan, *decision.frugal)} == {"PagedAdamW8Bit"}
    assert {plan.weights for plan in (decision.plan, *decision.frugal)} == {"Quantized"}
    assert "weights" not in {choice.name for choice in decision.choices}
    (reason,) = (choice.reason for choice in decision.choices if choice.name == "optimizer")
    assert reason == "the trainer image is not known to have others"


@pytest.mark.parametrize(
    ("named", "planned"),
    [("AdamW8Bit", "AdamW8Bit"), ("PagedAdamW8Bit", "PagedAdamW8Bit"), ("Sgd", "PagedAdamW8Bit")],
)
def test_an_optimizer_of_the_stack_profile_is_the_only_one(named: StackOptimizer, planned: Optimizer) -> None:
    """A run spec cannot name every optimizer of a stack. Then it names none, and the estimate has the stack's."""
    request = make_request(stack=replace(DEFAULT_STACK, optimizer=named))
    decision = feasible(decide_training(request, [on_node(product(LARGE))]))
    assert {plan.optimizer for plan in (decision.plan, *decision.frugal)} == {planned}
    reasons = [choice.reason for choice in decision.choices if choice.name == "optimizer"]
    assert reasons == (["trainer.stackProfile names it"] if named == planned else [])
    states = [term for term in decision.estimate.terms if term.name == "optimizer states"]
    assert all(term.formula.startswith(f"{named} of ") for term in states)
    assert bool(states) == (named != "Sgd")


@pytest.mark.parametrize("trainer", [ABILITIES, OLDER_ABILITIES])
def test_the_frugal_rung_is_the_last_one_of_the_ladder(trainer: Abilities) -> None:
    for training in ({}, {"lora": {"rank": 1}}, {"gradientCheckpointing": "Forbid"}):
        request = make_request(training, trainer=trainer)
        assert request.frugal(None) == request.ladder(None)[-1]


def test_weights_are_dequantized_where_the_smallest_gpu_that_fits_has_the_room() -> None:
    """They need 13 GiB instead of 3.4, so an L4 keeps them packed. A job never asks for a larger GPU because of them."""
    large = feasible(decide_training(make_request(), [on_node(product(LARGE))]))
    assert large.plan.weights == "Dequantized"
    assert large.estimate.high_bytes <= (large.gpu.usable_bytes or 0)
    both = feasible(decide_training(make_request(), [on_node(product(SMALL)), on_node(product(LARGE))]))
    assert (both.gpu.product, both.plan.weights) == (SMALL, "Quantized")
    assert "Dequantized" not in {plan.weights for plan in both.frugal}


@pytest.mark.parametrize(
    "stack",
    [{"quantization": "None"}, {"quantization": "Int8"}, {"cast_to_float32": True}, {"quantized_head": True}],
)
def test_a_stack_whose_weights_are_no_4_bit_ones_keeps_them(stack: dict[str, Any]) -> None:
    request = make_request(stack=replace(DEFAULT_STACK, **stack))
    decision = feasible(decide_training(request, [on_node(product(LARGE))]))
    assert {plan.weights for plan in (decision.plan, *decision.frugal)} == {"Quantized"}
    assert decision.plan.optimizer == "AdamW"


def test_on_a_cpu_the_rung_of_the_ladder_itself_needs_less_than_the_plan() -> None:
    decision = feasible(decide_training(make_request(device="cpu"), [on_node(product(SMALL))]))
    own = replace(decision.plan, gradient_checkpointing=True)
    assert decision.plan not in decision.frugal
    assert own in decision.frugal
