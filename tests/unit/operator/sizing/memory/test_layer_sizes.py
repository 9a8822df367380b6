"""Sizes of one layer's tensors, by hand for a row of eight tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.memory.layer_sizes import beyond_window, dora_bytes, is_eager, layer_sizes
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLAN = TrainingPlan(8, rank=8)


def test_tensors_have_their_width_times_the_tokens_in_16_bits() -> None:
    found = layer_sizes(small_model(), PLAN, DEFAULT_STACK, windowed=False)
    assert (found.hidden, found.query, found.key_value, found.inner) == (
        2 * 64 * 8,
        2 * 64 * 8,
        2 * 32 * 8,
        2 * 256 * 8,
    )
    assert found.score == 8 * 8 * 4
    assert found.sums == 4 * 4 * 8
    assert (found.eager, found.masked, found.repeats) == (False, False, False)


def test_a_cast_to_float32_doubles_the_residual_stream_and_copies_adapter_inputs() -> None:
    stack = replace(DEFAULT_STACK, cast_to_float32=True)
    found = layer_sizes(small_model(), PLAN, stack, windowed=False)
    assert found.hidden == 4 * 64 * 8
    assert found.mlp_out.copy == 2 * 256 * 8
    assert not found.attention_saves_input


def test_only_adapted_matrices_save_their_input() -> None:
    plan = replace(PLAN, target_modules="AttentionOnly")
    found = layer_sizes(small_model(), plan, DEFAULT_STACK, windowed=False)
    assert found.attention_saves_input
    assert not found.mlp_saves_input


def test_dropout_saves_a_mask_and_its_result() -> None:
    found = layer_sizes(small_model(), replace(PLAN, dropout=True), DEFAULT_STACK, windowed=False)
    assert found.attention_in[0].dropped == 64 * 8 + 2 * 64 * 8


def test_a_padding_mask_repeats_keys_and_values() -> None:
    stack = replace(DEFAULT_STACK, attention="SdpaMasked")
    found = layer_sizes(small_model(), PLAN, stack, windowed=False)
    assert found.masked
    assert found.repeats
    # Query, result, repeated keys and values, softmax sums and the mask.
    assert found.attention_held == 4 * found.query + found.sums + 2 * 8 * 8


@pytest.mark.parametrize(("length", "masked"), [(31, False), (32, True)])
def test_rows_beyond_the_window_need_a_mask(length: int, masked: bool) -> None:  # noqa: FBT001 -- a case's outcome
    shape, plan = small_model("mistral", sliding_window=32), TrainingPlan(length)
    assert beyond_window(shape, plan) == masked
    assert layer_sizes(shape, plan, DEFAULT_STACK, windowed=True).masked == masked
    assert not layer_sizes(shape, plan, DEFAULT_STACK, windowed=False).masked
    assert not layer_sizes(shape, plan, replace(DEFAULT_STACK, attention="Flash"), windowed=True).masked


def test_heads_wider_than_256_leave_the_flash_kernel() -> None:
    assert not layer_sizes(small_model(head_dim=256), PLAN, DEFAULT_STACK, windowed=False).masked
    assert layer_sizes(small_model(head_dim=257), PLAN, DEFAULT_STACK, windowed=False).masked


def test_capped_scores_are_eager_but_for_flash_attention() -> None:
    assert is_eager(small_model("gemma2"), DEFAULT_STACK)
    assert not is_eager(small_model("gemma2"), replace(DEFAULT_STACK, attention="Flash"))
    assert not is_eager(small_model(), DEFAULT_STACK)
    assert is_eager(small_model(), replace(DEFAULT_STACK, attention="Eager"))


def test_dora_unpacks_a_matrix_and_adds_its_update_in_blocks() -> None:
    """The matrix in 16 bits, and at most 4,194,304 elements of the sum in 32."""
    query = small_model().linears[0]
    assert dora_bytes(query) == (2 + 4) * 64 * 64
    wide = replace(query, inputs=8192, outputs=8192)
    assert dora_bytes(wide) == 2 * 8192 * 8192 + 4 * (1 << 22)


def test_factors_in_another_type_are_copied_for_the_product() -> None:
    """Rank 8: 64 inputs or outputs of the query take 8 x 64 x 2 bytes."""
    query = layer_sizes(small_model(), PLAN, DEFAULT_STACK, windowed=False).attention_in[0]
    assert (query.factor_in, query.factor_out) == (1024, 1024)
    narrow = replace(DEFAULT_STACK, adapter_dtype="BFloat16")
    query = layer_sizes(small_model(), PLAN, narrow, windowed=False).attention_in[0]
    assert (query.factor_in, query.factor_out) == (0, 0)
