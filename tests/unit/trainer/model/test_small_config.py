"""Configs of real models become small ones of the same architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.model.small_config import VOCABULARY, small_document
from transformers import AutoConfig, AutoModelForCausalLM


def small(kind: str, **members: Any) -> Any:
    document = small_document(AutoConfig.for_model(kind, **members).to_dict())
    document.pop("model_type")
    return AutoConfig.for_model(kind, **document)


def test_a_small_config_keeps_what_the_architecture_is_made_of() -> None:
    config = small(
        "llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, attention_bias=True
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.hidden_size) == (4, 2, 64)
    assert config.attention_bias
    assert config.vocab_size == VOCABULARY


def test_two_layers_of_each_kind_stay() -> None:
    kinds = ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 3 + ["full_attention"]
    config = small("qwen3_next", layer_types=kinds, num_hidden_layers=8)
    assert config.layer_types == ["linear_attention", "linear_attention", "full_attention", "full_attention"]
    assert config.num_hidden_layers == 4


def test_heads_that_are_not_shared_stay_so_and_a_single_one_stays_single() -> None:
    assert small("llama", num_attention_heads=32, num_key_value_heads=32).num_key_value_heads == 4
    assert small("llama", num_attention_heads=32, num_key_value_heads=1).num_key_value_heads == 1


def test_a_token_id_beyond_the_small_vocabulary_is_moved_into_it() -> None:
    assert small("llama", eos_token_id=128009).eos_token_id < VOCABULARY


def test_a_vocabulary_stays_if_asked_for_unless_it_is_absurd() -> None:
    for ids, kept in ((262_400, 262_400), (10**9, VOCABULARY)):
        document = AutoConfig.for_model("llama", vocab_size=ids).to_dict()
        assert small_document(document, None)["vocab_size"] == kept


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "gemma3n_text", "falcon_h1", "qwen3_next", "gpt2"])
def test_the_model_of_a_small_config_has_few_parameters_and_runs(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small(kind))
    assert model.num_parameters() < 3_000_000
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("kind", ["zamba", "zamba2", "blt", "dory"])
def test_sizes_that_are_a_share_of_others_still_fit_each_other(kind: str) -> None:
    model: Any = AutoModelForCausalLM.from_config(small(kind))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
    assert bool(torch.isfinite(logits).all())


def test_what_a_tower_gives_has_the_width_of_the_text_part() -> None:
    config = small("granite_docling")
    assert config.vision_config.out_hidden_size == config.text_config.hidden_size
    assert max(config.vision_config.deepstack_visual_indexes) < config.vision_config.num_hidden_layers


def test_sections_of_a_rotary_embedding_add_up_to_what_is_rotated() -> None:
    config = small("hy_v4_vl").text_config
    assert sum(config.rope_parameters["mrope_section"]) == config.qk_rope_head_dim // 2


def test_the_rotated_share_of_a_latent_head_is_that_of_the_small_model() -> None:
    config = small("mistral4")
    assert config.rope_parameters["partial_rotary_factor"] * config.head_dim == config.qk_rope_head_dim
