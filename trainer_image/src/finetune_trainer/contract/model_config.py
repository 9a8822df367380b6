"""The members of a base model's config.json that decide its memory (contract/model_config.json)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

NESTED = "text_config"
MEMBERS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "shared_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "tie_embedding",
    "sliding_window",
    "use_sliding_window",
    "sliding_window_pattern",
    "max_window_layers",
    "layer_types",
    "layers_block_type",
    "full_attn_idxs",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_bias",
    "attention_out_bias",
    "mlp_bias",
    "use_bias",
    "use_qkv_bias",
    "use_qk_norm",
    "qk_layernorm",
    "use_parallel_residual",
    "hidden_act",
    "hidden_activation",
    "clip_qkv",
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "residual_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "block_ff_dim",
    "block_auto_adjust_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
    "conv_bias",
    "conv_l_cache",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
)
CLOSED_FORMS = frozenset(
    [
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "cwm",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt_neox",
        "granite",
        "granitemoehybrid",
        "helium",
        "hunyuan_v1_dense",
        "jais2",
        "lfm2",
        "llama",
        "ministral",
        "ministral3",
        "mistral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    ]
)
"""Model types whose memory the operator computes from these members alone. PREPARE traces the others in any case."""
FORMULA_LAYERS = frozenset({"attention", "full_attention", "sliding_attention", "conv"})
"""Kinds of layers that the operator's formulas know."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
KINDS = ("layer_types", "layers_block_type")
"""Lists with the kind of each layer, which become the number of each kind."""
COUNTS = ("full_attn_idxs",)
"""Lists that become their length."""
SPELLINGS: Mapping[str, str] = {"conv_l_cache": "conv_L_cache"}
"""Members with another name in config.json. A document between the two sides has names in lower case."""
_MAXIMUM_TEXT = 64
_INTEGERS = range(-(2**63), 2**63)


def has_formula(config: Mapping[str, Any]) -> bool:
    """Return whether the operator computes the memory of a model from its config.json alone.

    A family with a formula may also have models with experts or with other layers, for example Granite 4. Only a trace knows
    these. A missing member counts as that of a dense model.
    """
    if config.get("model_type") not in CLOSED_FORMS:
        return False
    counts = (config.get(name) for name in EXPERT_COUNTS)
    if any(type(count) is int and count > 1 for count in counts):
        return False
    lists = (config.get(name) for name in KINDS)
    return all(set(kinds) <= FORMULA_LAYERS for kinds in lists if isinstance(kinds, list))


def select_config_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the MEMBERS that a config.json has, and those of its nested text config.

    A null stays, because it differs from a missing member. A value that is no scalar of the contract's size becomes
    the beginning of its text. A reader that needs a number there then rejects it instead of assuming a default.
    """
    selected: dict[str, Any] = _selected(config)
    nested = config.get(NESTED)
    if isinstance(nested, dict):
        selected[NESTED] = _selected(nested)
    return selected


def _selected(config: Mapping[str, Any]) -> dict[str, Any]:
    spelled = ((name, SPELLINGS.get(name, name)) for name in MEMBERS)
    return {name: _reported(name, config[spelling]) for name, spelling in spelled if spelling in config}


def _reported(name: str, value: Any) -> Any:
    """Return a list as the text or number that the contract says, and any other value as a scalar."""
    if name in COUNTS and isinstance(value, list):
        return len(value)
    if name in KINDS and isinstance(value, list) and all(isinstance(kind, str) for kind in value):
        return " ".join(f"{kind}={count}" for kind, count in sorted(Counter(value).items()))[:_MAXIMUM_TEXT]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INTEGERS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)[:_MAXIMUM_TEXT]
