"""Memory of the frozen model, by hand from the formats of bitsandbytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, Quantization
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.memory.weights import (
    cast_items,
    constants_bytes,
    dora_preparation,
    matrix_bytes,
    unpacked_bytes,
    unpacked_embedding_weights,
    weight_items,
)

from tests.support.sizing_models import small_model

UNQUANTIZED = replace(DEFAULT_STACK, quantization="None")
SQUARE = 4096 * 4096


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        # Half a byte a weight; a byte for 64 weights, 4 bytes for 256 of these, tables of 64 and 1,024 bytes, an offset.
        ("NF4DoubleQuant", (SQUARE // 2, SQUARE // 64 + 4 * SQUARE // 16384 + 512 + 1024 + 512)),
        ("NF4", (SQUARE // 2, 4 * SQUARE // 64 + 512)),
        ("Int8", (SQUARE, 4 * 4096)),
        ("None", (2 * SQUARE, 0)),
    ],
)
def test_a_matrix_has_the_size_of_its_format(quantization: Quantization, expected: tuple[int, int]) -> None:
    assert matrix_bytes(SQUARE, 4096, replace(DEFAULT_STACK, quantization=quantization)) == expected


def test_a_packed_matrix_is_unpacked_to_16_bits_and_its_constants_to_32() -> None:
    assert unpacked_bytes(SQUARE, DEFAULT_STACK) == 2 * SQUARE
    assert constants_bytes(SQUARE, DEFAULT_STACK) == 4 * SQUARE // 64
    assert constants_bytes(SQUARE, replace(DEFAULT_STACK, quantization="NF4")) == 0
    assert unpacked_bytes(SQUARE, UNQUANTIZED) == 0


def test_an_unquantized_model_has_two_bytes_for_each_parameter() -> None:
    for tied in (True, False):
        shape = small_model(tie_word_embeddings=tied)
        items = weight_items(shape, UNQUANTIZED)
        assert sum(item.bytes for item in items) == 2 * shape.parameters
        assert ("output head" in {item.name for item in items}) == (not tied)


def test_a_quantized_head_is_packed() -> None:
    shape = small_model()
    (head,) = (
        item
        for item in weight_items(shape, replace(DEFAULT_STACK, quantized_head=True))
        if item.name == "output head"
    )
    # 64,000 weights: 32,000 B packed (32,256 allocated), 1,000 constants (1,024), 4 of these (512), tables and offset.
    assert head.bytes == 32256 + 1024 + 512 + 512 + 1024 + 512
    assert unpacked_embedding_weights(shape, DEFAULT_STACK) == 2 * 64000
    assert unpacked_embedding_weights(shape, replace(DEFAULT_STACK, quantized_head=True)) == 64000


def test_a_cast_to_float32_adds_two_bytes_for_each_parameter() -> None:
    shape = small_model()
    items, original = cast_items(shape, replace(UNQUANTIZED, cast_to_float32=True))
    assert sum(item.bytes for item in items) == 2 * shape.parameters
    assert original == 2 * 64 * 1000
    assert cast_items(shape, UNQUANTIZED) == ((), 0)
    wide = replace(UNQUANTIZED, cast_to_float32=True, unquantized_dtype="Float32")
    assert cast_items(shape, wide) == ((), 0)


def test_a_cast_of_a_quantized_model_leaves_packed_matrices_alone() -> None:
    shape = small_model()
    items, _ = cast_items(shape, replace(DEFAULT_STACK, cast_to_float32=True))
    assert sum(item.bytes for item in items) == 2 * (shape.embedding_weights + shape.other_weights)


@pytest.mark.parametrize(("targets", "largest"), [("AllLinear", 64 * 256), ("AttentionOnly", 64 * 64)])
def test_dora_prepares_its_largest_adapted_matrix(targets: str, largest: int) -> None:
    """A copy of 2 bytes, the unpacked matrix of 2, and three results of 4 bytes for each weight."""
    plan = TrainingPlan(
        16, variant="DoRA", target_modules="AllLinear" if targets == "AllLinear" else "AttentionOnly"
    )
    assert dora_preparation(small_model(), plan, UNQUANTIZED) == 16 * largest
    assert dora_preparation(small_model(), replace(plan, variant="Standard"), UNQUANTIZED) == 0
