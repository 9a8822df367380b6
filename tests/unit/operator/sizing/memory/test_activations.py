"""Memory of all layers: counts, waiting tensors and the shared batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.memory.activations import batch_item, layer_memories, peak_items, waiting_item
from finetune_operator.sizing.memory.meter import Kind
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, Checkpointing
from finetune_operator.sizing.memory.terms import MemoryItem
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLAN = TrainingPlan(100, micro_batch_size=2, gradient_accumulation=4)
HIDDEN = 2 * 64 * 200


def waiting(plan: TrainingPlan, checkpointing: Checkpointing = "PerLayer", *, last: bool) -> MemoryItem:
    stack = replace(DEFAULT_STACK, checkpointing=checkpointing)
    shape = small_model(num_hidden_layers=5)
    return waiting_item(layer_memories(shape, plan, stack), shape, plan, stack, last=last)


def test_layers_with_and_without_a_window_are_counted() -> None:
    memories = layer_memories(model_shape({"model_type": "gemma2"}), PLAN, DEFAULT_STACK)
    assert [count for count, _ in memories] == [13, 13]
    assert [count for count, _ in layer_memories(small_model(), PLAN, DEFAULT_STACK)] == [2]


@pytest.mark.parametrize(("checkpointing", "inputs"), [("PerLayer", 5), ("PerLayerOffloaded", 2)])
def test_with_checkpointing_layer_inputs_wait(checkpointing: Checkpointing, inputs: int) -> None:
    assert waiting(PLAN, checkpointing, last=True).bytes == inputs * HIDDEN
    assert waiting(PLAN, checkpointing, last=False).bytes == HIDDEN


def test_without_checkpointing_the_other_layers_wait() -> None:
    plan = replace(PLAN, gradient_checkpointing=False)
    ((_, memory),) = layer_memories(small_model(num_hidden_layers=5), plan, DEFAULT_STACK)
    assert waiting(plan, last=True).bytes == 4 * memory.all_saved
    assert waiting(plan, last=False).bytes == 0


def test_kinds_without_bytes_are_no_items() -> None:
    peak = [0, 0, 0, 0]
    peak[Kind.UNPACKED] = 7
    (item,) = peak_items(tuple(peak))
    assert (item.name, item.bytes) == ("unpacked matrix", 7)


def test_a_batch_holds_ids_targets_positions_and_rotary_tables() -> None:
    """Three 64-bit numbers for each token of all passes; cosines and sines of 16 elements for each one of a pass."""
    plain = 3 * 8 * 200 * 4 + 2 * 2 * 16 * 200
    assert batch_item(small_model(), PLAN, DEFAULT_STACK).bytes == plain
    masked = replace(DEFAULT_STACK, attention="SdpaMasked")
    assert batch_item(small_model(), PLAN, masked).bytes == plain + 2 * 100 * 100
    eager = replace(DEFAULT_STACK, attention="Eager")
    assert batch_item(small_model(), PLAN, eager).bytes == plain + 2 * 2 * 100 * 100
