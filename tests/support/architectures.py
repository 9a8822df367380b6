"""Tiny models of many architectures. Their random weights are so large that every part affects the logits."""

from __future__ import annotations

from typing import Any

import torch
from finetune_trainer.model.load import attention_implementation
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
# Settings that make each family differ from Llama, if its defaults do not.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": _HEAD,
    "gemma": _HEAD,
    "gemma2": {**_HEAD, "sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_HEAD, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "phi": {},
    "phi3": {},
    "smollm3": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "granite": {"logits_scaling": 2.5, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {**_HEAD, "logit_scale": 0.3, "sliding_window": 4},
    "starcoder2": {"sliding_window": 4},
    "stablelm": {},
    "seed_oss": {**_HEAD, "attention_dropout": 0.0},
    "arcee": {},
    "ernie4_5": _HEAD,
    "glm": _HEAD,
    "glm4": _HEAD,
    "exaone4": {"sliding_window": 4},
    "nemotron": {},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "bloom": {"n_layer": 2, "n_head": 4},
    "helium": _HEAD,
    "apertus": {},
    "hunyuan_v1_dense": _HEAD,
    "granitemoehybrid": {
        "num_local_experts": 0,
        "layer_types": ["attention"] * 2,
        "shared_intermediate_size": 48,
        "mamba_n_heads": 4,
        "logits_scaling": 2.5,
        "residual_multiplier": 0.5,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
}

LEAKING = frozenset({"bloom", "falcon", "lfm2", "nemotron", "stablelm"})
"""Families whose rows cannot share a pass: by ALiBi, by a convolution, or because their layers do not get the rows."""


def tiny(family: str) -> Any:
    """Return a model of `family` in float32 and evaluation mode. All parameters except the head's are trainable."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES.get(family, {})})
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention_implementation(config)
    )
    model.get_output_embeddings().requires_grad_(False)
    return model.eval()
