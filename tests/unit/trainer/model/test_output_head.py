from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.output_head import OutputHead, chunks, loss_chunk, output_head, prove_head
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def projection() -> torch.nn.Linear:
    linear = torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.constant_(linear.weight, 1.0)
    return linear


@torch.no_grad()
def test_logits_follow_the_formula_with_scale_and_softcap() -> None:
    hidden = torch.tensor([[3.0, 1.0]])
    assert OutputHead(projection(), 0.5, None).logits(hidden).tolist() == [[2.0, 2.0, 2.0]]
    capped = OutputHead(projection(), 0.5, 10.0).logits(hidden)
    assert capped[0, 0].item() == pytest.approx(10 * torch.tensor(0.2).tanh().item())


@pytest.mark.parametrize(("count", "vocabulary"), [(0, 10), (1, 1 << 26), (7, 1 << 24), (100, 50_000)])
def test_chunks_cover_all_positions_once_within_the_limit(count: int, vocabulary: int) -> None:
    positions = [position for chunk in chunks(count, vocabulary) for position in range(count)[chunk]]
    assert positions == list(range(count))
    assert all(chunk.stop - chunk.start <= loss_chunk(vocabulary) for chunk in chunks(count, vocabulary))


@pytest.mark.parametrize(
    ("members", "scale"),
    [
        ({"logit_scale": 0.25}, 0.25),
        ({"logits_scaling": 8.0, "model_type": "granite"}, 0.125),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, 8.0),
        ({}, 1.0),
    ],
)
def test_the_scale_has_the_meaning_of_each_family(members: dict[str, Any], scale: float) -> None:
    text = SimpleNamespace(**members)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text), get_output_embeddings=projection
    )
    assert output_head(model).scale == scale


def test_an_ordinary_model_is_accepted_and_keeps_its_mode() -> None:
    model = tiny_llama().train()
    prove_head(model)
    assert model.training


def test_a_model_with_another_output_computation_is_unsupported() -> None:
    model = tiny_llama()
    model.config.logit_scale = 2.0
    with pytest.raises(StageError, match="must give the model's own logits") as caught:
        prove_head(model)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
