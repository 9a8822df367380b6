from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.model.context import position_limit, rotary_context
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

_LLAMA: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 100,
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**_LLAMA), None),
        (BloomConfig(vocab_size=32, hidden_size=8, n_layer=1, n_head=2), None),
        (
            OPTConfig(
                vocab_size=32, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=100, word_embed_proj_dim=8,
            ),
            100,
        ),
        (
            GPTNeoConfig(
                vocab_size=32, hidden_size=8, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
                max_position_embeddings=100,
            ),
            100,
        ),
        (GPTJConfig(vocab_size=32, n_embd=8, n_layer=1, n_head=2, rotary_dim=2, n_positions=100), 100),
    ],
    ids=["llama", "bloom", "opt", "gpt_neo", "gptj"],
)  # fmt: skip
def test_only_a_table_of_positions_limits_the_length(config: Any, expected: int | None) -> None:
    """OPT's table has two more rows, and GPT-J computes its table once. Rotary and ALiBi positions go on."""
    assert position_limit(on_meta(config)) == expected


def test_a_table_of_distances_limits_nothing() -> None:
    model = on_meta(LlamaConfig(**_LLAMA))
    model.model.relative_position_embeddings = torch.nn.Embedding(4, 8)
    assert position_limit(model) is None


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        ({"rope_type": "dynamic", "factor": 2.0}, 200),
        ({"type": "linear", "factor": 2.0}, 200),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
        ({"rope_type": "yarn", "factor": 4.0}, 400),
        (
            {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 12,
            },
            100,
        ),
    ],
    ids=["none", "linear", "dynamic", "old-name", "yarn", "yarn-without-original", "llama3"],
)  # fmt: skip
def test_the_context_is_that_of_the_scaled_rotary_embedding(scaling: Any, expected: int) -> None:
    settings: dict[str, Any] = {**_LLAMA, "rope_scaling": scaling}
    assert rotary_context(LlamaConfig(**settings)) == expected


def test_a_familys_maximum_may_already_be_scaled() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    settings: dict[str, Any] = {"max_position_embeddings": 1000, "rope_scaling": scaling}
    assert rotary_context(Gemma3TextConfig(**settings)) == 1000


def test_models_without_a_rotary_embedding_have_no_context() -> None:
    assert rotary_context(OPTConfig()) is None
    assert rotary_context(Qwen2Config(max_position_embeddings=64)) == 64
