"""A model whose weights are shared out computes what a whole one computes, with one whole layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.model.output_head import (
    body,
    gathered,
    is_sharded,
    language_model,
    output_head,
)
from finetune_trainer.model.sharding.groups import layers_of, share_out
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.ranks import lone_group

IDS = torch.tensor([[3, 7, 1, 9, 4, 4]])


def _base(*, tied: bool, layers: int = 3) -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _model(*, tied: bool) -> Any:
    adapted = get_peft_model(_base(tied=tied), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return adapted.train()


def _logits(model: Any) -> torch.Tensor:
    states = body(language_model(model))(input_ids=IDS, use_cache=False).last_hidden_state
    head = output_head(model)
    with gathered(head.projection), torch.no_grad():
        logits = head.logits(states.detach()[0])
    states.sum().backward()
    return logits


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("recomputing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_logits_and_gradients_are_those_of_the_whole_model(
    tmp_path: Path, *, tied: bool, recomputing: bool
) -> None:
    whole, shared = _model(tied=tied), _model(tied=tied)
    if recomputing:
        shared.enable_input_require_grads()
        shared.gradient_checkpointing_enable({"use_reentrant": False})
    with lone_group(tmp_path) as mesh:
        share_out(shared, mesh)
        for _ in range(2):
            for model in (whole, shared):
                model.zero_grad()
            assert torch.equal(_logits(shared), _logits(whole))
            found, expected = _gradients(shared), _gradients(whole)
            assert found.keys() == expected.keys() != set()
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_only_the_layer_that_computes_is_whole(tmp_path: Path) -> None:
    model = _model(tied=False)
    causal = language_model(model)
    matrices = [layer.mlp.up_proj for layer in layers_of(model)]
    seen: list[list[bool]] = []
    for layer in layers_of(model):
        layer.mlp.act_fn.register_forward_hook(
            lambda *_: seen.append([not isinstance(each.weight, DTensor) for each in matrices])
        )
    with lone_group(tmp_path) as mesh, torch.no_grad():
        share_out(model, mesh)
        body(causal)(input_ids=IDS, use_cache=False)
        assert seen == [[True, False, False], [False, True, False], [False, False, True]]
        assert isinstance(causal.get_input_embeddings().weight, DTensor)
        with gathered(output_head(model).projection):
            assert not isinstance(output_head(model).projection.weight, DTensor)
        assert isinstance(output_head(model).projection.weight, DTensor)


def test_adapter_and_vectors_stay_whole(tmp_path: Path) -> None:
    model = _model(tied=True)
    assert not is_sharded(model)
    with lone_group(tmp_path) as mesh:
        share_out(model, mesh)
        assert is_sharded(model)
        shared = {name for name, value in model.named_parameters() if isinstance(value, DTensor)}
    expected = {
        name for name, value in model.named_parameters() if not value.requires_grad and value.ndim > 1
    }
    assert shared == expected


def test_a_model_without_layers_of_its_own_has_none() -> None:
    assert layers_of(_base(tied=False, layers=0)) == []
    assert len(layers_of(_base(tied=False))) == 3
