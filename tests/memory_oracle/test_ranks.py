"""The memory of one of several ranks agrees with the trainer's step as such a rank, on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.traced import traced_estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import TraceRequest
from finetune_trainer.trace.command import traced

from tests.support.memory_oracle.cases import CONFIGS
from tests.support.memory_oracle.fake_ranks import run_rank
from tests.support.memory_oracle.fake_run import plan_spec
from tests.support.memory_oracle.published import BY_NAME

pytestmark = pytest.mark.slow

LARGEST_DIFFERENCE = 0.03
LAYERS = 4
"""Layers that run. Embeddings, adapter and gathered weights are then a larger part of the memory than in the whole model."""


def plan(ranks: int, parallelism: str, length: int = 1024, **others: Any) -> TrainingPlan:
    return TrainingPlan(length, ranks=ranks, parallelism=parallelism, **others)  # type: ignore[arg-type]


CASES: dict[str, tuple[str, TrainingPlan]] = {
    "llama, replicas": ("llama-3.1-8b", plan(2, "DataParallel")),
    "llama, replicas of more passes": ("llama-3.1-8b", plan(8, "DataParallel", gradient_accumulation=4)),
    "qwen2, dequantized replicas": ("qwen2.5-7b", plan(4, "DataParallel", weights="Dequantized")),
    "gemma, tied replicas": ("gemma-2b", plan(3, "DataParallel", micro_batch_size=2)),
    "llama, shared": ("llama-3.1-8b", plan(2, "FullyShard")),
    "llama, shared by more": ("llama-3.1-8b", plan(8, "FullyShard", gradient_accumulation=4)),
    "llama, shared without checkpointing": (
        "llama-3.1-8b",
        plan(4, "FullyShard", gradient_checkpointing=False),
    ),
    "llama, shared in 16 bits": ("llama-3.1-8b", plan(4, "FullyShard", weights="Dequantized")),
    "qwen2, shared": ("qwen2.5-7b", plan(2, "FullyShard", length=4096)),
    "qwen3, shared in 16 bits": ("qwen3-32b", plan(8, "FullyShard", weights="Dequantized", rank=64)),
    "qwen3, tied and shared": ("qwen3-1.7b", plan(3, "FullyShard", micro_batch_size=2)),
    "gemma, tied and shared": ("gemma-7b", plan(4, "FullyShard", optimizer="AdamW8Bit")),
    "mistral, shared": ("mistral-24b", plan(5, "FullyShard", gradient_accumulation=2)),
}


@pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES.keys())
def test_the_estimate_of_a_rank_agrees_with_its_step(name: str, case: TrainingPlan) -> None:
    config = {**CONFIGS[name], "num_hidden_layers": LAYERS}
    found = run_rank(config, case)
    estimated = estimate(model_shape(config), case, DEFAULT_STACK)
    assert estimated.visible_peak_bytes == pytest.approx(found.peak_bytes, rel=LARGEST_DIFFERENCE)


EXPERTS = BY_NAME["OLMoE 7B A1B"].with_layers(LAYERS).document


@pytest.mark.parametrize(
    ("ranks", "weights"),
    [
        (2, "Quantized"),
        pytest.param(8, "Quantized", marks=pytest.mark.full),
        pytest.param(4, "Dequantized", marks=pytest.mark.full),
    ],
)
def test_the_trace_of_a_mixture_of_experts_agrees_with_the_step_of_a_rank(ranks: int, weights: str) -> None:
    case = plan(ranks, "FullyShard", length=256, gradient_accumulation=2, weights=weights)
    answered = traced(
        TraceRequest(training=plan_spec(case).training, config=EXPERTS, length=case.sequence_length)
    )
    assert answered.trace is not None, answered.problem
    trace = MemoryTrace.model_validate(answered.trace.document())
    estimated = traced_estimate(trace, case, DEFAULT_STACK)
    found = run_rank(EXPERTS, case)
    assert estimated.visible_peak_bytes == pytest.approx(found.peak_bytes, rel=LARGEST_DIFFERENCE)


def test_a_rank_holds_less_the_more_share_the_weights() -> None:
    config = {**CONFIGS["llama-3.1-8b"], "num_hidden_layers": LAYERS}
    loads = [run_rank(config, plan(ranks, "FullyShard", length=64)).phases["Load"] for ranks in (2, 8)]
    assert loads[1] < loads[0] / 2
