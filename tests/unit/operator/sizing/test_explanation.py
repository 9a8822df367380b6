"""Reasons of a plan's values."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.plan import Device
from finetune_operator.sizing.explanation import FORBID_REASON, NOT_TRACED_REASON, explain
from finetune_operator.sizing.gpus.gpu import Gpu

from tests.support.sizing_jobs import make_request, sized

LARGE = sized(80 << 30, "Large")


def reasons(
    training: dict[str, Any] | None = None,
    index: int = 0,
    gpu: Gpu = LARGE,
    *,
    length: int = 2048,
    borderline: bool = False,
    device: Device = "cuda",
    **resources: Any,
) -> dict[str, tuple[str, str]]:
    """Value and reason of each choice for one rung of the ladder."""
    request = make_request(training, length, resources=resources, device=device)
    ladder = request.ladder(gpu)
    choices = explain(
        request.spec,
        ladder,
        index % len(ladder),
        gpu,
        borderline=borderline,
        length_reason="measured",
        device=device,
        abilities=request.abilities,
    )
    return {choice.name: (choice.value, choice.reason) for choice in choices}


def test_the_accumulation_is_the_quotient_of_the_batch_sizes() -> None:
    found = reasons({"effectiveBatchSize": 16, "microBatchSize": 2})
    assert found["gradientAccumulationSteps"] == ("8", "effectiveBatchSize 16 / microBatchSize 2")
    assert "microBatchSize" not in found


def test_the_length_has_the_reason_of_its_source() -> None:
    assert reasons()["sequenceLength"] == ("2048", "measured")


@pytest.mark.parametrize(
    ("effective", "length", "value", "words"),
    [
        (16, 2048, "4", "at most 8,192 tokens per pass"),
        (4, 2048, "4", "the whole effective batch in one pass: 8,192 tokens of at most 8,192"),
        (16, 9000, "1", "a single row has 9,000 tokens"),
    ],
)
def test_a_micro_batch_says_which_limit_it_reached(
    effective: int, length: int, value: str, words: str
) -> None:
    found = reasons({"effectiveBatchSize": effective}, length=length)["microBatchSize"]
    assert found[0] == value
    assert words in found[1]


def test_a_smaller_micro_batch_names_the_one_that_does_not_fit() -> None:
    ladder = make_request().ladder(None)
    gpu = sized(ladder[-4].estimate.device_bytes - 1, "Small")
    value, reason = reasons(index=-3, gpu=gpu)["microBatchSize"]
    assert value == "1"
    assert "micro-batch 2 needs " in reason
    assert "but Small has " in reason


def test_checkpointing_names_the_plan_without_it_that_does_not_fit() -> None:
    ladder = make_request().ladder(None)
    index = next(number for number, rung in enumerate(ladder) if rung.plan.gradient_checkpointing)
    gpu = sized(ladder[index - 1].estimate.device_bytes - 1, "Small")
    value, reason = reasons(index=index, gpu=gpu)["gradientCheckpointing"]
    assert value == "true"
    assert reason.startswith("without it, micro-batch 1 needs ")


def test_a_small_micro_batch_says_what_a_larger_one_with_checkpointing_costs() -> None:
    """The passes of 2,048 tokens take 1.25, those of 8,192 tokens 4/3 x 1.0625 of the ideal time."""
    ladder = make_request().ladder(None)
    index = next(number for number, rung in enumerate(ladder) if rung.plan.weights == "Quantized")
    gpu = sized(ladder[index - 1].estimate.device_bytes - 1, "Small")
    value, reason = reasons(index=index, gpu=gpu)["microBatchSize"]
    assert value == "1"
    # Packed weights with micro-batch 2 are no rung: dequantized ones with micro-batch 1 are as fast, and need less.
    assert "micro-batch 2 with dequantized weights needs " in reason
    assert reason.endswith("micro-batch 4 with checkpointing would take 13% more time")


def test_without_checkpointing_the_job_fits_and_runs_faster() -> None:
    assert reasons()["gradientCheckpointing"] == (
        "false",
        "the job fits without it, and computing activations twice takes 33% more time",
    )


def test_on_a_cpu_checkpointing_is_off_because_it_saves_only_gpu_memory() -> None:
    assert reasons(index=-1, device="cpu")["gradientCheckpointing"] == (
        "false",
        "saves only GPU memory, and trainer.device is cpu",
    )


def test_the_fastest_optimizer_is_taken_if_the_job_fits_with_it() -> None:
    value, reason = reasons()["optimizer"]
    assert (value, reason) == (
        "AdamW",
        "the fastest, and the job fits with its states of 8 bytes for each trained parameter",
    )


def test_an_optimizer_with_smaller_states_names_the_plan_that_does_not_fit() -> None:
    fast, small = make_request().ladder(None)[:2]
    gpu = sized(fast.estimate.high_bytes - 1, "Small")
    assert small.fits_with_margin(fast.estimate.high_bytes - 1)
    value, reason = reasons(index=1, gpu=gpu)["optimizer"]
    assert value == "AdamW8Bit"
    assert reason.startswith(f"AdamW with micro-batch {fast.plan.micro_batch_size} may need ")


def test_a_paged_optimizer_is_taken_where_nothing_leaves_more_room() -> None:
    value, reason = reasons(index=-1, borderline=True)["optimizer"]
    assert value == "PagedAdamW8Bit"
    assert reason == "its states can leave Large while it is full, and no plan leaves more room"


def test_dequantized_weights_are_taken_if_the_job_fits_with_them() -> None:
    assert reasons()["weights"] == (
        "Dequantized",
        "the job fits with its 4-bit weights in 16 bits, so that no pass has to unpack them",
    )


def test_packed_weights_name_the_dequantized_plan_that_does_not_fit() -> None:
    ladder = make_request().ladder(None)
    index = next(number for number, rung in enumerate(ladder) if rung.plan.weights == "Quantized")
    gpu = sized(ladder[index - 1].estimate.device_bytes - 1, "Small")
    value, reason = reasons(index=index, gpu=gpu)["weights"]
    assert value == "Quantized"
    assert reason.startswith("micro-batch 1 with dequantized weights needs 26.9 GiB, but Small has ")


@pytest.mark.parametrize(
    ("missing", "name", "value"),
    [("Dequantized", "weights", "Quantized"), ("without checkpointing", "gradientCheckpointing", "true")],
)
def test_a_way_that_a_trace_lacks_is_no_choice(missing: str, name: str, value: str) -> None:
    request = make_request()
    ladder = [
        rung
        for rung in request.ladder(LARGE)
        if (rung.plan.weights != missing if missing == "Dequantized" else rung.plan.gradient_checkpointing)
    ]
    index = next(
        number
        for number, rung in enumerate(ladder)
        if rung.plan.weights == "Quantized" and rung.plan.optimizer == "AdamW"
    )
    choices = explain(
        request.spec,
        ladder,
        index,
        LARGE,
        borderline=False,
        length_reason="measured",
        device="cuda",
        abilities=request.abilities,
    )
    assert {each.name: (each.value, each.reason) for each in choices}[name] == (value, NOT_TRACED_REASON)


def test_a_cpu_has_one_optimizer() -> None:
    assert reasons(device="cpu")["optimizer"] == (
        "AdamW",
        "trainer.device is cpu, and the others save only GPU memory",
    )


def test_forbidden_right_sizing_is_the_reason_of_both_open_values() -> None:
    found = reasons(rightSize="Forbid")
    assert found["microBatchSize"] == ("1", FORBID_REASON)
    assert found["gradientCheckpointing"] == ("true", FORBID_REASON)
    assert found["optimizer"] == ("PagedAdamW8Bit", FORBID_REASON)
    assert found["weights"] == ("Quantized", FORBID_REASON)


def test_a_borderline_plan_says_that_nothing_has_more_room() -> None:
    value, reason = reasons(index=-1, borderline=True)["gpu"]
    assert value == "Large"
    assert reason.startswith("borderline: needs ")
    assert "no other plan or GPU here leaves more room" in reason
