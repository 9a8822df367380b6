"""Popular models by name: the members of their config.json that decide their memory.

Families with a closed form have their members here. Of the others, `TRACED` has whole configs: those of
`tests.support.memory_oracle.published`, and those of checkpoints that also see, whose text part is trained.
"""

from __future__ import annotations

from typing import Any

from tests.support.memory_oracle.cases import CONFIGS, decoder_config
from tests.support.memory_oracle.published import BY_NAME, default_config

_TIED = {"tie_word_embeddings": True}
_WIDE = {"head_dim": 128}


def _seeing(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    """Return what sizing reads of the config.json of a checkpoint that also sees."""
    return {"model_type": kind, "text_config": text}


_GEMMA_2, _GEMMA_3 = CONFIGS["gemma-2-2b"], CONFIGS["gemma-3-4b"]
_GEMMA_2_9B = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
_GEMMA_2_27B = {
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_hidden_layers": 46,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
}
_GEMMA_3_12B = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
_GEMMA_3_27B = {
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
}
BY_FORMULA: dict[str, dict[str, Any]] = {
    "Apertus 8B": decoder_config("apertus", 131072, 4096, 21504, 32, 32, 8, hidden_act="xielu"),
    "Gemma 2 2B": _GEMMA_2,
    "Gemma 2 9B": {**_GEMMA_2, **_GEMMA_2_9B},
    "Gemma 2 27B": {**_GEMMA_2, **_GEMMA_2_27B},
    "Gemma 3 1B": CONFIGS["gemma-3-1b"],
    "Gemma 3 4B": _seeing("gemma3", _GEMMA_3),
    "Gemma 3 12B": _seeing("gemma3", {**_GEMMA_3, **_GEMMA_3_12B}),
    "Gemma 3 27B": _seeing("gemma3", {**_GEMMA_3, **_GEMMA_3_27B}),
    "GLM 4 9B": CONFIGS["glm-4-9b-0414"],
    "GLM 4 32B": decoder_config("glm4", 151552, 6144, 23040, 61, 48, 2, **_WIDE),
    "Granite 3.3 2B": CONFIGS["granite-3.1-2b"],
    "Granite 3.3 8B": decoder_config("granite", 49155, 4096, 12800, 40, 32, 8, **_TIED),
    "LFM2 1.2B": {
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "block_ff_dim": 12288,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    },
    "Llama 3.1 8B": CONFIGS["llama-3.1-8b"],
    "Llama 3.1 405B": decoder_config("llama", 128256, 16384, 53248, 126, 128, 8, **_WIDE),
    "Llama 3.2 1B": CONFIGS["llama-3.2-1b"],
    "Llama 3.2 3B": decoder_config("llama", 128256, 3072, 8192, 28, 24, 8, **_WIDE, **_TIED),
    "Llama 3.3 70B": decoder_config("llama", 128256, 8192, 28672, 80, 64, 8, **_WIDE),
    "Ministral 3 8B": _seeing(
        "mistral3", decoder_config("ministral3", 131072, 4096, 14336, 34, 32, 8, **_WIDE)
    ),
    "Mistral 7B v0.3": CONFIGS["mistral-7b"],
    "Mistral Large 2 123B": decoder_config(
        "mistral", 32768, 12288, 28672, 88, 96, 8, **_WIDE, sliding_window=None
    ),
    "Mistral NeMo 12B": decoder_config(
        "mistral", 131072, 5120, 14336, 40, 32, 8, **_WIDE, sliding_window=None
    ),
    "Mistral Small 3.1 24B": _seeing("mistral3", CONFIGS["mistral-24b"]),
    "OLMo 2 7B": CONFIGS["olmo-2-7b"],
    "OLMo 2 13B": decoder_config("olmo2", 100352, 5120, 13824, 40, 40, 40),
    "OLMo 3 7B": CONFIGS["olmo-3-7b"],
    "OLMo 3 32B": decoder_config("olmo3", 100278, 5120, 27648, 64, 40, 8, sliding_window=4096),
    "Phi-3 mini": CONFIGS["phi-3-mini"],
    "Phi-4": CONFIGS["phi-4"],
    "Phi-4 mini": decoder_config(
        "phi3", 200064, 3072, 8192, 32, 24, 8, sliding_window=262144, pad_token_id=199999, **_TIED
    ),
    "Qwen2.5 0.5B": CONFIGS["qwen2.5-0.5b"],
    "Qwen2.5 1.5B": decoder_config("qwen2", 151936, 1536, 8960, 28, 12, 2, **_TIED),
    "Qwen2.5 3B": decoder_config("qwen2", 151936, 2048, 11008, 36, 16, 2, **_TIED),
    "Qwen2.5 7B": CONFIGS["qwen2.5-7b"],
    "Qwen2.5 14B": decoder_config("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "Qwen2.5 32B": decoder_config("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "Qwen2.5 72B": decoder_config("qwen2", 152064, 8192, 29568, 80, 64, 8),
    "Qwen3 0.6B": decoder_config("qwen3", 151936, 1024, 3072, 28, 16, 8, **_WIDE, **_TIED),
    "Qwen3 1.7B": CONFIGS["qwen3-1.7b"],
    "Qwen3 4B": decoder_config("qwen3", 151936, 2560, 9728, 36, 32, 8, **_WIDE, **_TIED),
    "Qwen3 8B": CONFIGS["qwen3-8b"],
    "Qwen3 14B": decoder_config("qwen3", 151936, 5120, 17408, 40, 40, 8, **_WIDE),
    "Qwen3 32B": CONFIGS["qwen3-32b"],
    "Seed-OSS 36B": CONFIGS["seed-oss-36b"],
    "SmolLM2 135M": CONFIGS["smollm2-135m"],
    "SmolLM2 360M": decoder_config("llama", 49152, 960, 2560, 32, 15, 5, **_TIED),
    "SmolLM2 1.7B": decoder_config("llama", 49152, 2048, 8192, 24, 32, 32, **_TIED),
    "SmolLM3 3B": CONFIGS["smollm3-3b"],
    "StarCoder2 3B": CONFIGS["starcoder2-3b"],
}
_GEMMA_4_LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
_GEMMA_4 = {"vocab_size": 262144, "head_dim": 256, "global_head_dim": 512, "tie_word_embeddings": True}
_GRANITE_4 = {
    "vocab_size": 100352,
    "num_hidden_layers": 40,
    "layers_block_type": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "mamba_d_state": 128,
    "tie_word_embeddings": True,
}
_WRAPPED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Gemma 4 E4B": (
        "gemma4",
        "gemma4_text",
        {
            **_GEMMA_4,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 42,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
            "layer_types": _GEMMA_4_LAYERS * 7,
        },
    ),
    "Gemma 4 26B A4B": (
        "gemma4",
        "gemma4_text",
        {
            **_GEMMA_4,
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "num_hidden_layers": 30,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 1024,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "layer_types": _GEMMA_4_LAYERS * 5,
        },
    ),
    "Gemma 4 31B": (
        "gemma4",
        "gemma4_text",
        {
            **_GEMMA_4,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 60,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_global_key_value_heads": 4,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 1024,
            "layer_types": _GEMMA_4_LAYERS * 10,
        },
    ),
    "Llama 4 Scout": ("llama4", "llama4_text", BY_NAME["Llama 4 Scout"].members),
    "Llama 4 Maverick": ("llama4", "llama4_text", BY_NAME["Llama 4 Maverick"].members),
    "Qwen3-VL 8B": (
        "qwen3_vl",
        "qwen3_vl_text",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3.5 9B": ("qwen3_5", "qwen3_5_text", BY_NAME["Qwen3.5 9B"].members),
    "Qwen3.5 27B": ("qwen3_5", "qwen3_5_text", BY_NAME["Qwen3.5 27B"].members),
    "Qwen3.5 35B A3B": ("qwen3_5_moe", "qwen3_5_moe_text", BY_NAME["Qwen3.5 35B A3B"].members),
}
_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Granite 4 H Small 32B": (
        "granitemoehybrid",
        {
            **_GRANITE_4,
            "hidden_size": 4096,
            "intermediate_size": 768,
            "shared_intermediate_size": 1536,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 72,
            "num_experts_per_tok": 10,
            "mamba_n_heads": 128,
        },
    ),
    "Granite 4 H Tiny 7B": (
        "granitemoehybrid",
        {
            **_GRANITE_4,
            "hidden_size": 1536,
            "intermediate_size": 512,
            "shared_intermediate_size": 1024,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "num_local_experts": 64,
            "num_experts_per_tok": 6,
            "mamba_n_heads": 48,
        },
    ),
}
_PLAIN = (
    "DeepSeek V2 Lite",
    "DeepSeek V3",
    "ERNIE 4.5 21B A3B",
    "Falcon-H1 7B",
    "GLM 4.5",
    "GLM 4.5 Air",
    "GLM 4.7 Flash",
    "gpt-oss 20B",
    "gpt-oss 120B",
    "Granite 3.1 1B A400M",
    "Granite 3.1 3B A800M",
    "Kimi K2",
    "MiniMax M2",
    "Mixtral 8x7B",
    "Mixtral 8x22B",
    "Moonlight 16B A3B",
    "OLMoE 7B A1B",
    "Phi-3.5 MoE",
    "Qwen3 30B A3B",
    "Qwen3 235B A22B",
    "Qwen3 Next 80B A3B",
)
TRACED: dict[str, dict[str, Any]] = {
    **{name: BY_NAME[name].document for name in _PLAIN},
    **{name: default_config(kind, **members) for name, (kind, members) in _MORE.items()},
    **{
        name: default_config(kind, text_config={"model_type": text, **members})
        for name, (kind, text, members) in _WRAPPED.items()
    },
}
