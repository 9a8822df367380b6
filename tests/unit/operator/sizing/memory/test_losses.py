"""Memory of the loss, by hand for 1,000 vocabulary entries and two rows of 100 tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from finetune_operator.sizing.memory.losses import loss_items, scoring_items
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, Loss, StackProfile
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLAN = TrainingPlan(100, micro_batch_size=2)
ENTRIES, HIDDEN, TOKENS = 1000, 64, 200


def logits(shape: ModelShape, stack: StackProfile) -> int:
    return next(item.bytes for item in loss_items(shape, PLAN, stack) if item.name == "logits")


@pytest.mark.parametrize(
    ("loss", "plain", "capped"),
    [
        # The last token of a row predicts nothing; 16 and 32 bits, and the selected hidden states.
        ("SupervisedChunks", 198 * (6 * ENTRIES + 2 * HIDDEN), 198 * (10 * ENTRIES + 2 * HIDDEN)),
        ("TokenChunks", TOKENS * ENTRIES * 12, TOKENS * ENTRIES * 18),
        ("FusedTile", TOKENS * ENTRIES * 2, TOKENS * ENTRIES * 2),
        # 1,000 entries are 16 times the hidden size; 200 / 16 tokens, as a power of two, are 16.
        ("Liger", 16 * ENTRIES * 8, 16 * ENTRIES * 8),
        ("CutCrossEntropy", 0, 0),
        ("FullLogits", TOKENS * ENTRIES * 12, TOKENS * ENTRIES * 18),
        ("FullLogitsShifted", TOKENS * ENTRIES * 14, TOKENS * ENTRIES * 20),
        ("FullLogitsBf16", TOKENS * ENTRIES * 6, TOKENS * ENTRIES * 8),
    ],
)
def test_logits_have_the_documented_bytes_of_each_loss(loss: Loss, plain: int, capped: int) -> None:
    stack = replace(DEFAULT_STACK, loss=loss)
    assert logits(small_model(), stack) == plain
    assert logits(small_model("gemma2"), stack) == capped


def test_a_chunk_bounds_the_logits_at_one_time() -> None:
    chunked = replace(DEFAULT_STACK, loss_chunk_logits=10 * ENTRIES)
    assert logits(small_model(), chunked) == 10 * (6 * ENTRIES + 2 * HIDDEN)
    tokens = replace(DEFAULT_STACK, loss="TokenChunks", loss_chunk_tokens=7)
    assert logits(small_model(), tokens) == 7 * ENTRIES * 12


def test_hidden_states_are_kept_in_16_and_32_bits_with_their_gradient() -> None:
    sizes = {item.name: item.bytes for item in loss_items(small_model(), PLAN, DEFAULT_STACK)}
    assert sizes["hidden states"] == 6 * HIDDEN * TOKENS
    assert sizes["gradient of hidden states"] == 2 * HIDDEN * TOKENS


def test_scoring_uses_the_evaluation_batch_and_no_gradient() -> None:
    sizes = {
        item.name: item.bytes
        for item in scoring_items(small_model(), PLAN, replace(DEFAULT_STACK, evaluation_batch=5))
    }
    assert sizes["hidden states"] == 2 * HIDDEN * 500
    assert "gradient of hidden states" not in sizes


def test_scoring_full_logits_takes_ten_bytes_for_each() -> None:
    stack = replace(DEFAULT_STACK, loss="FullLogits")
    sizes = {item.name: item.bytes for item in scoring_items(small_model(), PLAN, stack)}
    assert sizes["logits"] == TOKENS * ENTRIES * 10


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_scoring_takes_no_more_for_a_logit_than_training(loss: Loss, family: str) -> None:
    stack, shape = replace(DEFAULT_STACK, loss=loss), small_model(family)
    scored = {item.name: item.bytes for item in scoring_items(shape, PLAN, stack)}
    assert scored["logits"] <= logits(shape, stack)
