"""The right-sizing ladder."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from finetune_operator.api.plan import Optimizer, Weights
from finetune_operator.api.spec import Training
from finetune_operator.sizing.ladder import (
    FIXED_CHECKPOINTING,
    FIXED_MICRO_BATCH,
    OLDER_ABILITIES,
    TOKENS_OF_A_PASS,
    TOKENS_OF_AN_UPDATE,
    TOKENS_PER_PASS,
    Abilities,
    Estimator,
    RightSize,
    divisors,
    plans,
    relative_time,
    rungs,
    training_plan,
)
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import ModelShape, model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Estimate, NotTracedError
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sizing_jobs import mistral


def needs_of(shape: ModelShape) -> Estimator:
    return lambda plan: estimate(shape, plan, DEFAULT_STACK)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Models from one layer up to some billions of parameters."""
    heads = draw(st.sampled_from([1, 2, 8, 32]))
    family: dict[str, Any] = {
        "model_type": draw(st.sampled_from(["llama", "qwen3", "gemma2", "cohere", "phi3"]))
    }
    return model_shape(
        family
        | {
            "hidden_size": heads * draw(st.sampled_from([16, 64, 128])),
            "intermediate_size": draw(st.sampled_from([64, 1024, 14336])),
            "num_hidden_layers": draw(st.integers(1, 40)),
            "num_attention_heads": heads,
            "num_key_value_heads": draw(st.sampled_from([heads, 1])),
            "vocab_size": draw(st.sampled_from([256, 32768, 256000])),
        }
    )


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    """Any settings that decide memory."""
    effective = draw(st.integers(1, 96))
    return Training(
        effective_batch_size=effective,
        micro_batch_size=draw(st.sampled_from([None, *divisors(effective)])),
        gradient_checkpointing=draw(st.sampled_from(["Auto", "Require", "Forbid"])),
        lora={
            "rank": draw(st.sampled_from([1, 16, 256])),
            "dropout": draw(st.sampled_from([0, 0.1])),
            "targetModules": draw(st.sampled_from(["AllLinear", "AttentionOnly"])),
            "variant": draw(st.sampled_from(["Standard", "DoRA"])),
        },
    )


SIZES: st.SearchStrategy[RightSize] = st.sampled_from(["Allow", "Forbid"])


@settings(deadline=None, max_examples=150)
@given(shapes(), trainings(), st.integers(1, 20000), SIZES)
def test_every_rung_needs_less_memory_and_keeps_the_users_values(
    shape: ModelShape, training: Training, length: int, right_size: RightSize
) -> None:
    ladder = rungs(training, length, needs_of(shape), right_size)
    sizes = [rung.estimate.device_bytes for rung in ladder]
    assert len(ladder) == 1 or right_size == "Allow"
    if len(ladder) > 1:
        # The last rung saves nothing in the estimate: its states can leave a GPU that is fuller than estimated.
        assert ladder[-1].plan == replace(ladder[-2].plan, optimizer="PagedAdamW8Bit")
        assert sizes.pop() == sizes[-1]
    assert sizes == sorted(set(sizes), reverse=True)
    for rung in ladder:
        plan = rung.plan
        assert plan.effective_batch_size == training.effective_batch_size
        assert training.micro_batch_size in {None, plan.micro_batch_size}
        assert training.gradient_checkpointing in {
            "Auto",
            "Require" if plan.gradient_checkpointing else "Forbid",
        }
        assert (plan.rank, plan.target_modules) == (training.lora.rank, training.lora.target_modules)
        assert (plan.variant, plan.dropout) == (training.lora.variant, training.lora.dropout > 0)


@settings(deadline=None, max_examples=100)
@given(shapes(), trainings(), st.integers(1, 20000))
def test_the_last_rung_needs_the_least_of_all_allowed_ways(
    shape: ModelShape, training: Training, length: int
) -> None:
    needs = needs_of(shape)
    micro_batches = divisors(training.effective_batch_size)
    if training.micro_batch_size is not None:
        micro_batches = (training.micro_batch_size,)
    states = {"Auto": (True, False), "Require": (True,), "Forbid": (False,)}[training.gradient_checkpointing]
    least = min(
        needs(training_plan(training, length, size, checkpointing=on)).device_bytes
        for size, on in product(micro_batches, states)
    )
    assert rungs(training, length, needs, "Allow")[-1].estimate.device_bytes == least


@pytest.mark.parametrize(("effective", "length"), [(16, 2048), (12, 2048), (7, 1000), (16, 100), (16, 9000)])
def test_the_first_rung_is_the_largest_divisor_within_the_token_limit(effective: int, length: int) -> None:
    first = rungs(Training(effective_batch_size=effective), length, needs_of(mistral()), "Allow")[0].plan
    larger = [size for size in divisors(effective) if size > first.micro_batch_size]
    assert not first.gradient_checkpointing
    assert first.micro_batch_size == 1 or first.tokens <= TOKENS_PER_PASS
    assert all(size * length > TOKENS_PER_PASS for size in larger)


OLDER_LADDERS: list[tuple[int, list[tuple[int, bool]]]] = [
    (2048, [(4, False), (2, False), (1, False), (4, True), (2, True), (1, True)]),
    (9000, [(1, False), (1, True)]),
    # Passes of few tokens take longer than computing activations twice in passes of many.
    (256, [(16, False), (8, False), (16, True), (8, True), (4, True), (2, True), (1, True)]),
]


@pytest.mark.parametrize(("length", "expected"), OLDER_LADDERS)
def test_the_ladder_goes_from_the_fastest_plan_to_the_most_frugal(
    length: int, expected: list[tuple[int, bool]]
) -> None:
    ladder = rungs(Training(effective_batch_size=16), length, needs_of(mistral()), "Allow", OLDER_ABILITIES)
    assert {rung.plan.optimizer for rung in ladder} == {"PagedAdamW8Bit"}
    assert [(rung.plan.micro_batch_size, rung.plan.gradient_checkpointing) for rung in ladder] == expected
    times = [relative_time(rung.plan) for rung in ladder]
    assert times == sorted(times)


def test_an_optimizer_with_smaller_states_comes_before_a_smaller_micro_batch() -> None:
    ladder = rungs(Training(effective_batch_size=16), 2048, needs_of(mistral()), "Allow")
    found = [
        (
            rung.plan.micro_batch_size,
            rung.plan.gradient_checkpointing,
            rung.plan.weights,
            rung.plan.optimizer,
        )
        for rung in ladder
    ]
    ways = [
        *((size, False, "Dequantized") for size in (4, 2, 1)),
        (1, False, "Quantized"),
        *((size, True, "Quantized") for size in (4, 2, 1)),
    ]
    assert found == [
        *((*way, optimizer) for way in ways for optimizer in ("AdamW", "AdamW8Bit")),
        (1, True, "Quantized", "PagedAdamW8Bit"),
    ]
    times = [relative_time(rung.plan) for rung in ladder]
    assert times == sorted(times)


def test_an_update_costs_its_tokens_once_for_all_passes_of_a_step() -> None:
    def time(size: int, optimizer: Optimizer) -> float:
        training = Training(effective_batch_size=4)
        return relative_time(training_plan(training, 64, size, checkpointing=False, optimizer=optimizer))

    for size in (1, 4):
        cost = TOKENS_OF_AN_UPDATE["AdamW8Bit"] / (4 * 64)
        assert time(size, "AdamW8Bit") - time(size, "AdamW") == pytest.approx(cost)
        assert time(size, "PagedAdamW8Bit") > time(size, "AdamW8Bit")


def test_dequantized_weights_spare_half_of_the_cost_of_a_pass() -> None:
    def time(weights: Weights, tokens: int) -> float:
        training = Training(effective_batch_size=1)
        return relative_time(
            training_plan(training, tokens, 1, checkpointing=False, optimizer="AdamW", weights=weights)
        )

    for tokens in (256, 4096):
        spared = time("Quantized", tokens) - time("Dequantized", tokens)
        assert spared == pytest.approx(TOKENS_OF_A_PASS / 2 / tokens)


def test_one_optimizer_alone_is_that_of_every_rung() -> None:
    ladder = rungs(Training(), 2048, needs_of(mistral()), "Allow", Abilities(("AdamW",)))
    assert {rung.plan.optimizer for rung in ladder} == {"AdamW"}


@settings(deadline=None, max_examples=100)
@given(shapes(), trainings(), st.integers(1, 20000))
def test_no_allowed_plan_is_both_faster_and_smaller_than_a_rung(
    shape: ModelShape, training: Training, length: int
) -> None:
    needs = needs_of(shape)
    ladder = rungs(training, length, needs, "Allow")
    for plan in plans(training, length, "Allow"):
        size, time = needs(plan).device_bytes, relative_time(plan)
        better = [
            rung for rung in ladder if rung.estimate.device_bytes <= size and relative_time(rung.plan) <= time
        ]
        assert better, plan


def test_recomputing_costs_a_quarter_of_the_throughput_and_a_pass_its_own_time() -> None:
    def plan(size: int, *, on: bool) -> TrainingPlan:
        training = Training(effective_batch_size=16)
        return training_plan(training, 512, size, checkpointing=on, optimizer="AdamW")

    once, twice = relative_time(plan(4, on=False)), relative_time(plan(4, on=True))
    assert once / twice == pytest.approx(0.75)
    assert relative_time(plan(1, on=False)) == pytest.approx(2 / 1.25 * once)


def test_forbidden_right_sizing_uses_the_documented_values() -> None:
    (only,) = rungs(Training(), 2048, needs_of(mistral()), "Forbid")
    assert (only.plan.micro_batch_size, only.plan.gradient_checkpointing) == (
        FIXED_MICRO_BATCH,
        FIXED_CHECKPOINTING,
    )
    assert only.plan.optimizer == "PagedAdamW8Bit"


@given(st.integers(1, 65536))
def test_divisors_are_all_of_them_largest_first(number: int) -> None:
    found = divisors(number)
    assert list(found) == [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def test_plans_of_unknown_memory_are_no_rungs_and_one_known_plan_is_enough() -> None:
    known = needs_of(mistral())

    def estimator(plan: TrainingPlan) -> Estimate:
        if not plan.gradient_checkpointing or plan.weights == "Dequantized":
            raise NotTracedError("not traced")
        return known(plan)

    found = rungs(Training(), 2048, estimator, "Allow")
    assert found
    assert all(rung.plan.gradient_checkpointing and rung.plan.weights == "Quantized" for rung in found)
    with pytest.raises(NotTracedError):
        rungs(Training.model_validate({"gradientCheckpointing": "Forbid"}), 2048, estimator, "Allow")
