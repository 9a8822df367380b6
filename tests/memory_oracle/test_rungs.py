"""Every way to run a step in the answer of a trace agrees with a run of that way, not only the first one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import MemoryTrace, TraceRequest
from finetune_trainer.trace.command import traced

from tests.support.memory_oracle.comparison import TOO_LITTLE, TOO_MUCH
from tests.support.memory_oracle.fake_run import plan_spec, run_fake
from tests.support.memory_oracle.published import BY_NAME

pytestmark = pytest.mark.slow

DENSE = BY_NAME["Youtu-LLM 2B"].with_layers(4).document
HYBRID = BY_NAME["Qwen3.5 9B"].with_layers(8).document
EXPERTS = BY_NAME["OLMoE 7B A1B"].with_layers(4).document
KINDS = {"dense": DENSE, "hybrid": HYBRID, "experts": EXPERTS}
_KIB = 1024


def answer(document: dict[str, Any], plan: TrainingPlan) -> MemoryTrace:
    """Return the trace of a job with rows of the plan's length."""
    training = plan_spec(plan).training
    found = traced(TraceRequest(training=training, config=document, length=plan.sequence_length))
    assert found.trace is not None, found.problem
    return found.trace


def check(document: dict[str, Any], plan: TrainingPlan, states: int, peaks: tuple[int, ...]) -> None:
    """Compare the peaks of a row of the trace, in KiB and without the optimizer's states, with a run."""
    load, *others = (size * _KIB for size in peaks)
    found, run = max(load, *(size + states for size in others)), run_fake(document, plan).peak_bytes
    assert TOO_LITTLE * run <= found <= TOO_MUCH * run, (
        f"{found / run - 1:+.2%} of {run / 2**30:.3f} GiB: {plan}"
    )


def every_way(document: dict[str, Any], plan: TrainingPlan) -> None:
    batch = plan.effective_batch_size
    trace = answer(document, plan)
    for rows, checkpointing, dequantized, *peaks in trace.rungs:
        way = replace(
            plan,
            micro_batch_size=rows,
            gradient_accumulation=batch // rows,
            gradient_checkpointing=bool(checkpointing),
            weights="Dequantized" if dequantized else "Quantized",
        )
        check(document, way, trace.optimizers["AdamW8Bit"], tuple(peaks))
    for length, *peaks in trace.lengths:
        way = replace(plan, sequence_length=length, micro_batch_size=1, gradient_accumulation=batch)
        check(document, way, trace.optimizers["AdamW8Bit"], tuple(peaks))


def test_every_way_of_a_dense_model_agrees_with_a_run_of_it() -> None:
    every_way(DENSE, TrainingPlan(96, 1, gradient_accumulation=2, optimizer="AdamW8Bit"))


ODD = [(kind, length) for kind in KINDS for length in (7, 1000)]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "length"), ODD)
def test_every_way_of_each_kind_agrees_with_odd_rows(kind: str, length: int) -> None:
    every_way(KINDS[kind], TrainingPlan(length, 1, gradient_accumulation=8, optimizer="AdamW8Bit"))
