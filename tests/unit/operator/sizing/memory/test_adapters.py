"""Memory of the trained tensors: rank x (inputs + outputs) for each adapted matrix (Hu et al., 2021)."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.memory.adapters import (
    Trained,
    bucket_items,
    is_adapted,
    optimizer_item,
    trained_tensors,
)
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackOptimizer
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

ATTENTION = (64 + 64) + 2 * (64 + 32) + (64 + 64)
MLP = 3 * (64 + 256)
OUTPUTS = 64 + 32 + 32 + 64 + 256 + 256 + 64


def test_every_linear_matrix_gets_two_factors() -> None:
    plan = TrainingPlan(16, rank=8)
    assert trained_tensors(small_model(), plan, DEFAULT_STACK).parameters == 2 * 8 * (ATTENTION + MLP)


def test_attention_only_leaves_the_mlp_without_adapters() -> None:
    plan = TrainingPlan(16, rank=8, target_modules="AttentionOnly")
    assert trained_tensors(small_model(), plan, DEFAULT_STACK).parameters == 2 * 8 * ATTENTION
    assert {linear.name for linear in small_model().linears if is_adapted(linear, plan)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


def test_dora_adds_a_magnitude_for_each_output() -> None:
    plain = trained_tensors(small_model(), TrainingPlan(16, rank=8), DEFAULT_STACK)
    dora = trained_tensors(small_model(), TrainingPlan(16, rank=8, variant="DoRA"), DEFAULT_STACK)
    assert dora.parameters - plain.parameters == 2 * OUTPUTS


def test_each_tensor_is_rounded_to_the_allocators_block() -> None:
    tensors = Trained(((100, 3), (256, 1)), width=2)
    assert tensors.parameters == 556
    assert tensors.bytes == 4 * 512


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("Sgd", 0),
        # Two moments in the adapter's type, and the number of steps.
        ("AdamW", 2 * 8192 + 512),
        # Two moments of a byte with a float32 scale for 256 of them: 64 bytes, a block of 512.
        ("AdamW8Bit", 2 * (4096 + 512)),
        ("PagedAdamW8Bit", 2 * (4096 + 512)),
        ("PagedAdamW32Bit", 2 * 4 * 4096),
    ],
)
def test_states_have_the_size_of_their_optimizer(optimizer: StackOptimizer, expected: int) -> None:
    assert optimizer_item(Trained(((4096, 1),), 2), optimizer).bytes == expected


def test_a_tensor_below_4096_elements_keeps_its_states_in_32_bits() -> None:
    assert optimizer_item(Trained(((4095, 1),), 2), "AdamW8Bit").bytes == 2 * 4 * 4096


def test_one_gpu_has_no_buckets_and_several_have_one_copy_of_the_gradients() -> None:
    trained = Trained(((1000, 3), (50, 2)), 4)
    assert bucket_items(trained, TrainingPlan(8)) == ()
    (item,) = bucket_items(trained, TrainingPlan(8, ranks=4))
    assert item.bytes == 12800
    assert "3100 parameters, for 4 ranks" in item.formula


def test_ranks_share_the_rows_of_a_step() -> None:
    assert TrainingPlan(8, micro_batch_size=2, gradient_accumulation=3, ranks=4).effective_batch_size == 24
