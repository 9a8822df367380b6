"""Estimates from a trace: exact where it was traced, never too low between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.memory.calibration import Calibration
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import NotTracedError, Phase
from finetune_operator.sizing.memory.traced import difference, traced_estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan

KIB = 1024
PLAN = TrainingPlan(2048, 1, 16)


def trace(**changes: Any) -> MemoryTrace:
    """Return the trace of a model with 1,000,000 quantized weights, of which 600,000 bytes are in 4 bits."""
    return MemoryTrace.model_validate(
        {
            "length": 2048,
            "rank": 16,
            "quantized": {"modules": 7, "parameters": 1_000_000, "bytes": 600_000},
            "adapted": {"modules": 7, "parameters": 10_240, "bytes": 40_960},
            "embeddings": {"modules": 2, "parameters": 200_000, "bytes": 400_000},
            "experts": {"modules": 2, "parameters": 4_000_000, "bytes": 8_000_000},
            "optimizers": {"AdamW": 81_920, "AdamW8Bit": 22_528},
            "rungs": [
                [1, 1, 0, 9000, 20000, 30000, 9500, 19000],
                [4, 1, 0, 9000, 60000, 99000, 9500, 59000],
                [16, 1, 0, 9000, 180000, 290000, 9400, 179000],
                [1, 0, 0, 9000, 50000, 55000, 9500, 19000],
                [1, 1, 1, 11000, 22000, 31000, 11500, 21000],
            ],
            "lengths": [[1024, 9000, 12000, 17000, 9500, 11000], [256, 9000, 10000, 11000, 9500, 9600]],
            **changes,
        }
    )


def peaks(plan: TrainingPlan, **changes: Any) -> dict[Phase, int]:
    phases = dict(traced_estimate(trace(**changes), plan, DEFAULT_STACK).phases)
    del phases[Phase.DEVICE]
    return phases


def test_a_traced_plan_has_the_traced_peaks_and_the_states_of_its_optimizer() -> None:
    found = peaks(PLAN)
    states = 22_528
    assert found == {
        Phase.LOAD: 9000 * KIB,
        Phase.LOSS: 20000 * KIB + states,
        Phase.RECOMPUTE: 30000 * KIB + states,
        Phase.OPTIMIZER: 9500 * KIB + states,
        Phase.EVALUATION: 19000 * KIB + states,
    }
    assert peaks(replace(PLAN, optimizer="AdamW"))[Phase.LOSS] == 20000 * KIB + 81_920
    paged = peaks(replace(PLAN, optimizer="PagedAdamW8Bit"))
    assert paged == found


def test_each_form_of_weights_and_activations_has_its_own_peaks() -> None:
    assert peaks(replace(PLAN, gradient_checkpointing=False))[Phase.RECOMPUTE] == 55000 * KIB + 22_528
    assert peaks(replace(PLAN, weights="Dequantized"))[Phase.LOAD] == 11000 * KIB


def test_the_terms_of_a_phase_add_up_and_name_the_experts() -> None:
    found = traced_estimate(trace(), PLAN, DEFAULT_STACK)
    for phase, size in found.phases.items():
        assert sum(term.bytes for term in found.terms if term.phase is phase) == size
    loading = [term for term in found.terms if term.phase is Phase.LOAD]
    assert max(loading, key=lambda term: term.bytes).name == "experts in NF4"
    unpacked = traced_estimate(trace(), replace(PLAN, weights="Dequantized"), DEFAULT_STACK)
    assert {term.bytes for term in unpacked.terms if term.name == "dequantized weights"} == {2_000_000}


def test_rows_between_two_traced_ones_lie_on_the_line_or_above() -> None:
    states, gradients = 22_528, 40_960
    found = peaks(replace(PLAN, micro_batch_size=8, gradient_accumulation=2))
    assert found[Phase.RECOMPUTE] == pytest.approx((99000 + 191000 / 3) * KIB + states + gradients, abs=2)
    whole = peaks(replace(PLAN, micro_batch_size=8, gradient_accumulation=1))
    assert whole[Phase.RECOMPUTE] == found[Phase.RECOMPUTE] - gradients


def test_more_rows_than_traced_count_as_if_the_weights_grew_with_them() -> None:
    found = peaks(replace(PLAN, micro_batch_size=32))
    assert found[Phase.LOSS] == 2 * 180000 * KIB + 22_528


@pytest.mark.parametrize(
    ("length", "recompute"), [(1024, 17000), (1536, 23500), (640, 14000), (256, 11000), (16, 11000)]
)
def test_a_shorter_row_takes_what_its_neighbors_take(length: int, recompute: int) -> None:
    found = peaks(replace(PLAN, sequence_length=length))
    assert found[Phase.RECOMPUTE] == recompute * KIB + 22_528


def test_shorter_rows_of_another_way_take_as_much_as_the_traced_ones() -> None:
    plan = replace(PLAN, gradient_checkpointing=False)
    assert peaks(replace(plan, sequence_length=64)) == peaks(plan)


def test_a_smaller_rank_saves_weights_and_states() -> None:
    found, before = peaks(replace(PLAN, rank=4)), peaks(PLAN)
    assert before[Phase.LOSS] - found[Phase.LOSS] == (40_960 + 22_528) * 3 // 4
    assert before[Phase.OPTIMIZER] - found[Phase.OPTIMIZER] == (2 * 40_960 + 22_528) * 3 // 4


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, sequence_length=2049),
        replace(PLAN, rank=32),
        replace(PLAN, weights="Dequantized", gradient_checkpointing=False),
    ],
    ids=["longer", "larger rank", "form"],
)
def test_nothing_is_said_about_a_plan_beyond_the_trace(plan: TrainingPlan) -> None:
    with pytest.raises(NotTracedError, match="traced"):
        traced_estimate(trace(), plan, DEFAULT_STACK)


def test_a_calibration_scales_what_is_not_held() -> None:
    scaled = Calibration(activation_factor=1.5)
    found = traced_estimate(trace(), PLAN, DEFAULT_STACK, scaled)
    held = 600_000 + 400_000 + 8_000_000 + 40_960
    assert found.phases[Phase.LOSS] == held + round((20000 * KIB - held) * 1.5) + 22_528


def test_the_difference_is_a_share_of_the_traced_peak() -> None:
    high = trace(rungs=[[1, 1, 0, 9000, 20000, 60000, 9500, 19000]], optimizers={"AdamW8Bit": 0})
    low = trace(rungs=[[1, 1, 0, 9000, 20000, 30000, 9500, 19000]], optimizers={"AdamW8Bit": 0})
    one, other = (traced_estimate(each, PLAN, DEFAULT_STACK) for each in (high, low))
    assert difference(one, other) == pytest.approx(1.0)
    assert difference(other, one) == pytest.approx(-0.5)


def test_ranks_share_experts_but_for_the_tables_of_each() -> None:
    groups = {
        "layers": 2,
        "layerBytes": 4_000_000,
        "dequantizedLayerBytes": 5_000_000,
        "embeddingBytes": 200_000,
        "headBytes": 200_000,
    }
    experts = {"modules": 96, "parameters": 4_000_000, "bytes": 8_000_000}
    plan = replace(PLAN, ranks=4, parallelism="FullyShard")
    found = traced_estimate(trace(sharing=groups, experts=experts), plan, DEFAULT_STACK)
    loading = {term.name: term.bytes for term in found.terms if term.phase is Phase.LOAD}
    assert loading["experts in NF4"] == 2_000_000
    # A float of the second level for 16,384 weights, and 2 KiB of tables for each matrix of an expert.
    assert loading["whole constants"] == 4 * (62 + 245) + 96 * 2048
    running = {term.name: term.bytes for term in found.terms if term.phase is Phase.RECOMPUTE}
    assert running["gathered weights"] == 2 * 4_000_000
