from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.duration import (
    BOUNDS,
    MAXIMUM_SECONDS,
    Duration,
    estimate_duration,
    measured_efficiency,
)
from finetune_operator.sizing.cost.speeds import CPU_SPEED, Speed, fit_speed, speed_of
from finetune_operator.sizing.cost.work import Rows, known_rows
from finetune_operator.sizing.memory.shape import ModelShape, model_shape
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import CONFIG, make_spec

LLAMA_8B = model_shape(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)
SMALL = model_shape(CONFIG)


def plan_of(length: int, micro_batch: int = 2, batch: int = 16, **changes: Any) -> TrainingPlan:
    return TrainingPlan(
        **{
            "sequence_length": length,
            "micro_batch_size": micro_batch,
            "gradient_accumulation": batch // micro_batch,
            "gradient_checkpointing": False,
            "optimizer": "AdamW",
            **changes,
        }
    )


def known(name: str) -> Speed:
    speed = speed_of(name, ())
    assert speed is not None
    return speed


def estimated(rows: Rows, plan: TrainingPlan, speed: Speed | None = None, **training: Any) -> Duration:
    spec = FineTuneJobSpec.parse(make_spec(training=training))
    return estimate_duration(spec, LLAMA_8B, plan, rows, speed or known("NVIDIA H100 80GB"))


def bounds(duration: Duration) -> list[float]:
    return [duration.seconds.of(bound) for bound in BOUNDS]


def test_the_guess_for_an_h100_is_near_the_published_speed_of_lora() -> None:
    """NeMo AutoModel: 12,473 tokens a second for Llama 3.1 8B with rows of 4,096 tokens and 16-bit weights."""
    rows = known_rows(10_000, 100, 4096, tokens=10_000 * 4096)
    found = estimated(rows, plan_of(4096, weights="Dequantized"))
    assert found.tokens_per_second == pytest.approx(12_473, rel=0.2)
    tokens = found.tokens
    assert found.seconds.low < tokens / 12_473 < found.seconds.high


def test_the_parts_add_up_to_the_expected_time() -> None:
    found = estimated(known_rows(1000, 100, 512, supervised=90_000), plan_of(512))
    assert sum(seconds for _, seconds in found.parts) == pytest.approx(found.seconds.expected)
    assert {"Start", "Load", "Probe", "Training", "Evaluation"} <= {name for name, _ in found.parts}
    assert found.gpu_hours(4).expected == pytest.approx(found.seconds.expected * 4 / 3600)


NUMBERS = st.integers(1, 100_000)
LENGTHS = st.integers(16, 8192)


@given(rows=NUMBERS, more=st.integers(0, 100_000), length=LENGTHS, epochs=st.integers(1, 10))
def test_more_rows_never_take_less_time(rows: int, more: int, length: int, epochs: int) -> None:
    few, many = (known_rows(number, 50, length, tokens=number * length) for number in (rows, rows + more))
    plan = plan_of(length)
    for less, greater in zip(
        bounds(estimated(few, plan, epochs=epochs)), bounds(estimated(many, plan, epochs=epochs)), strict=True
    ):
        assert less <= greater * (1 + 1e-9)


@given(rows=NUMBERS, length=LENGTHS, epochs=st.floats(0.1, 10), more=st.floats(0, 10))
def test_more_epochs_never_take_less_time(rows: int, length: int, epochs: float, more: float) -> None:
    data, plan = known_rows(rows, 50, length), plan_of(length)
    for less, greater in zip(
        bounds(estimated(data, plan, epochs=epochs)),
        bounds(estimated(data, plan, epochs=epochs + more)),
        strict=True,
    ):
        assert less <= greater * (1 + 1e-9)


@given(rows=NUMBERS, length=LENGTHS, more=st.integers(0, 8192), micro_batch=st.sampled_from([1, 2, 8]))
def test_longer_rows_never_take_less_time(rows: int, length: int, more: int, micro_batch: int) -> None:
    found = [
        bounds(estimated(known_rows(rows, 50, each), plan_of(each, micro_batch)))
        for each in (length, length + more)
    ]
    for less, greater in zip(*found, strict=True):
        assert less <= greater * (1 + 1e-9)


@given(rows=NUMBERS, length=LENGTHS, gpus=st.integers(2, 16), more=st.integers(0, 16))
def test_more_gpus_never_compute_longer(rows: int, length: int, gpus: int, more: int) -> None:
    """Only what they exchange may take longer."""
    data = known_rows(rows, 50, length)
    slower, faster = (
        dict(estimated(data, plan_of(length, 1, ranks=ranks, gradient_accumulation=-(-16 // ranks))).parts)
        for ranks in (gpus, gpus + more)
    )
    assert faster["Training"] <= slower["Training"] * (1 + 1e-9)


@given(
    rows=st.integers(0, 2**60),
    held_out=st.integers(0, 2**60),
    length=st.integers(0, 2**40),
    supervised=st.integers(0, 2**60),
    tokens=st.none() | st.integers(0, 2**60),
    gpu=st.sampled_from(["NVIDIA L4", "NVIDIA B200", "cpu"]),
)
def test_no_report_of_a_trainer_breaks_the_order_of_the_bounds(
    rows: int, held_out: int, length: int, supervised: int, tokens: int | None, gpu: str
) -> None:
    data = known_rows(rows, held_out, length, supervised=supervised, tokens=tokens)
    found = estimated(data, plan_of(16), CPU_SPEED if gpu == "cpu" else known(gpu))
    low, expected, high = bounds(found)
    assert 0 < low <= expected <= high <= MAXIMUM_SECONDS


def efficiency_of(shape: ModelShape, true: Speed) -> float | None:
    """What a run of this model shows about a device that is as fast as `true`."""
    spec = FineTuneJobSpec.parse(make_spec())
    rows, plan = known_rows(2000, 100, 512, tokens=2000 * 300), plan_of(512)
    run = estimate_duration(spec, shape, plan, rows, true)
    return measured_efficiency(spec, shape, plan, rows, true.rates, run.tokens_per_second)


def test_one_measured_run_predicts_other_runs_of_its_product() -> None:
    """A device that reaches a third of its speed: its run at one shape gives the time at another."""
    true = replace(known("NVIDIA L4"), slowest=0.33, typical=0.33, fastest=0.33)
    efficiency = efficiency_of(LLAMA_8B, true)
    assert efficiency is not None
    fitted = speed_of("NVIDIA L4", [fit_speed("NVIDIA L4", [efficiency])])
    other, plan = known_rows(5000, 100, 2048, tokens=5000 * 1200), plan_of(2048, gradient_checkpointing=True)
    found, actual = estimated(other, plan, fitted), estimated(other, plan, true)
    assert found.source == "Measured"
    assert found.tokens_per_second == pytest.approx(actual.tokens_per_second, rel=0.05)


def test_a_run_that_waited_for_its_host_says_nothing_about_the_gpu() -> None:
    assert efficiency_of(SMALL, known("NVIDIA H100 80GB")) is None
