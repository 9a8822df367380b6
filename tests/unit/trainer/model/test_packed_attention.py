"""Packed rows give the loss and gradients of the rows by themselves, for many architectures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.attention_policy import IMPLEMENTATIONS
from finetune_trainer.model.packed_attention import (
    ATTENTIONS,
    NotPackableError,
    PackedRows,
    has_kernel,
    using_attention,
)
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import Pass, StepCollator

from tests.support.architectures import FAMILIES, LEAKING, VOCABULARY, tiny

_LENGTHS = (13, 1, 12, 9, 1, 13)
"""Longer than the tiny models' windows of 4; rows of one token; the last pack is one row."""
_BUDGET = 13
_ROWS = IMPLEMENTATIONS["RowByRow"]
_VARLEN = IMPLEMENTATIONS["Varlen"]
PACKED = sorted(FAMILIES.keys() - LEAKING)


def _rows() -> list[dict[str, Any]]:
    """Return rows that share a beginning, and whose labels leave out some tokens."""
    generator = torch.Generator().manual_seed(3)
    beginning = torch.randint(3, VOCABULARY, (5,), generator=generator).tolist()
    rows = []
    for number, length in enumerate(_LENGTHS):
        rest = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        ids = (beginning + rest)[:length]
        labels = list(ids)
        if length > 3:
            labels[number % 3 + 1] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def _learn(model: Any, passes: tuple[Pass, ...], learned: int) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    attention = attention_of(model.config, "cpu", packed=passes[0].packed is not None)
    with using_attention(model, attention.implementation):
        for one in passes:
            loss = negative_log_likelihood(model, one) / learned
            loss.backward()
            total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_at_least_25_families_are_packed() -> None:
    assert len(PACKED) >= 25


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_the_loss_and_gradients_of_rows_by_themselves(family: str) -> None:
    _compare(tiny(family))


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "llama", "mistral", "phi3"])
def test_a_repeated_forward_pass_keeps_packed_rows_apart(family: str) -> None:
    model = tiny(family)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _compare(model.train())


def _compare(model: Any) -> None:
    rows = _rows()
    alone = StepCollator(Batching("AsDrawn", 0, 1))(rows)
    for budget in (_BUDGET, sum(_LENGTHS)):
        packed = StepCollator(Batching("Packed", budget, 1))(rows)
        assert len(packed.passes) < len(rows)
        expected, gradients = _learn(model, alone.passes, alone.learned)
        loss, found = _learn(model, packed.passes, packed.learned)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-5 * scale), name


def test_an_evaluation_within_the_training_has_the_models_own_attention() -> None:
    model = tiny("llama")
    with using_attention(model, _ROWS):
        assert model.config._attn_implementation == _ROWS
        with using_attention(model, "eager"):
            assert model.config._attn_implementation == "eager"
        assert model.config._attn_implementation == _ROWS
    assert model.config._attn_implementation == "sdpa"


def _heads(tokens: int = 6, heads: int = 2) -> torch.Tensor:
    return torch.randn((1, heads, tokens, 8), generator=torch.Generator().manual_seed(tokens + heads))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({}, "bounds of the rows"),
        ({"attention_mask": torch.ones(1)}, "masks its attention"),
        ({"is_causal": False}, "attend to later"),
        ({"position_bias": torch.ones(1)}, "position_bias"),
        ({"s_aux": torch.ones(1)}, "s_aux"),
        ({"dropout": 0.1}, "drops scores"),
    ],
)
@pytest.mark.parametrize("name", [_ROWS, _VARLEN])
def test_scores_that_this_attention_does_not_compute_are_refused(
    name: str, arguments: dict[str, Any], cause: str
) -> None:
    rows: dict[str, Any] = {} if cause == "bounds of the rows" else {"packed_rows": PackedRows.of([4, 2])}
    others = {name: value for name, value in arguments.items() if name != "attention_mask"}
    mask = arguments.get("attention_mask")
    with pytest.raises(NotPackableError, match=cause):
        ATTENTIONS[name](SimpleNamespace(), _heads(), _heads(), _heads(), mask, **rows, **others)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [({}, "no kernel for rows of varying length with its heads"), ({"softcap": 2.0}, "cap their scores")],
)
def test_layers_that_differ_from_their_config_are_found(arguments: dict[str, Any], cause: str) -> None:
    """The policy chose the kernel for rows, and a layer cannot have it: the canary then finds the reason."""
    assert not has_kernel(_heads(), _heads())
    rows = PackedRows.of([4, 2])
    with pytest.raises(NotPackableError, match=cause):
        ATTENTIONS[_VARLEN](
            SimpleNamespace(), _heads(), _heads(), _heads(), None, packed_rows=rows, **arguments
        )


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_of_a_gpu_agrees_with_rows_by_themselves(window: int | None) -> None:
    rows = PackedRows.of([7, 1, 4])
    parts = (_heads(12, 4), _heads(12, 2), _heads(12, 2))
    settings: dict[str, Any] = {"attention_mask": None, "sliding_window": window}
    expected, _ = ATTENTIONS[_ROWS](SimpleNamespace(), *parts, **settings, packed_rows=rows)
    query, key, value = (part.to("cuda", torch.bfloat16) for part in parts)
    assert has_kernel(query, value)
    found, _ = ATTENTIONS[_VARLEN](
        SimpleNamespace(), query, key, value, **settings, packed_rows=rows.to("cuda")
    )
    assert torch.allclose(found.float().cpu(), expected, atol=3e-2)
