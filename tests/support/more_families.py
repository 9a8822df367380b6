"""Tiny models of families beyond those of `published_models`, with the members that make each family differ.

transformers 4 lacks some of them.
"""

from __future__ import annotations

from typing import Any

from tests.support.published_models import ALWAYS, WINDOW, Published

_LATENT: dict[str, Any] = {
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
    "num_key_value_heads": 6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}
"""Multi-head latent attention: keys and values come from one narrow projection."""


def _model(kind: str, architecture: str, **members: Any) -> Published:
    config = {**ALWAYS, "model_type": kind, "architectures": [architecture], **members}
    return Published(
        config, "trl:qwen2_5", ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>",), pad="<|endoftext|>"
    )


MORE: dict[str, Published] = {
    # Its loader writes zeros to the row of the padding token, which is no zero here.
    "Youtu": _model("youtu", "YoutuForCausalLM", **_LATENT, rope_interleave=True, tie_word_embeddings=True),
    "Youtu, whole queries": _model(
        "youtu", "YoutuForCausalLM", **{**_LATENT, "q_lora_rank": None}, tie_word_embeddings=False
    ),
    "MiniCPM3": _model(
        "minicpm3", "MiniCPM3ForCausalLM", **_LATENT, scale_emb=12, scale_depth=1.4, dim_model_base=24
    ),
    "Phi-2": _model(
        "phi",
        "PhiForCausalLM",
        hidden_act="gelu_new",
        num_key_value_heads=6,
        partial_rotary_factor=0.5,
        layer_norm_eps=1e-5,
        resid_pdrop=0.1,
        tie_word_embeddings=False,
    ),
    # Its files call the head by another name than transformers does.
    "GPT-NeoX": _model(
        "gpt_neox", "GPTNeoXForCausalLM", hidden_act="gelu", hidden_size=96, tie_word_embeddings=False
    ),
    # One layer in six attends to the whole row, with other heads. Each layer has embeddings of its own.
    "Gemma 4": _model(
        "gemma4_text",
        "Gemma4ForCausalLM",
        head_dim=20,
        global_head_dim=28,
        num_attention_heads=4,
        num_hidden_layers=6,
        sliding_window=WINDOW,
        final_logit_softcapping=30.0,
        hidden_activation="gelu_pytorch_tanh",
        vocab_size_per_layer_input=293,
        hidden_size_per_layer_input=12,
        tie_word_embeddings=True,
    ),
    "DiffLlama": _model("diffllama", "DiffLlamaForCausalLM", hidden_size=96, tie_word_embeddings=False),
    "Llama, linear": _model(
        "llama", "LlamaForCausalLM", rope_scaling={"type": "linear", "factor": 4.0}, tie_word_embeddings=False
    ),
    "OLMo 3": _model(
        "olmo3",
        "Olmo3ForCausalLM",
        num_key_value_heads=6,
        num_hidden_layers=4,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        sliding_window=WINDOW,
        rope_theta=500000,
        rope_scaling={
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        max_position_embeddings=65536,
        tie_word_embeddings=False,
    ),
    "Granite": _model(
        "granite",
        "GraniteForCausalLM",
        attention_multiplier=0.0833,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        tie_word_embeddings=True,
    ),
    "Cohere": _model(
        "cohere", "CohereForCausalLM", logit_scale=0.0625, use_qk_norm=True, num_key_value_heads=6
    ),
    "StableLM 2": _model(
        "stablelm",
        "StableLmForCausalLM",
        partial_rotary_factor=0.25,
        hidden_size=96,
        qk_layernorm=True,
        use_parallel_residual=True,
        tie_word_embeddings=False,
    ),
    "ERNIE 4.5": _model(
        "ernie4_5", "Ernie4_5_ForCausalLM", head_dim=20, use_bias=False, tie_word_embeddings=True
    ),
    # Three layers of four are convolutions.
    "LFM2": _model(
        "lfm2",
        "Lfm2ForCausalLM",
        block_auto_adjust_ff_dim=True,
        block_dim=72,
        block_ff_dim=200,
        block_multiple_of=8,
        conv_L_cache=3,
        conv_bias=False,
        layer_types=["conv", "conv", "full_attention", "conv"],
        num_hidden_layers=4,
        norm_eps=1e-5,
        tie_embedding=True,
    ),
    "Apertus": _model(
        "apertus", "ApertusForCausalLM", hidden_act="xielu", qk_norm=True, tie_word_embeddings=False
    ),
    "Hunyuan": _model(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        head_dim=20,
        use_qk_norm=True,
        rope_scaling={"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "type": "dynamic"},
        tie_word_embeddings=True,
    ),
    "Nemotron": _model(
        "nemotron",
        "NemotronForCausalLM",
        hidden_act="relu2",
        head_dim=20,
        norm_eps=1e-5,
        partial_rotary_factor=0.5,
        tie_word_embeddings=False,
    ),
}
CHEAP = ("Youtu",)
"""Those that `make test` takes through the stages."""
REFUSED: dict[str, tuple[Published, str]] = {
    "Falcon": (
        _model("falcon", "FalconForCausalLM", alibi=False, bias=False, multi_query=True, parallel_attn=True),
        "model type 'falcon', whose linear layers are of another class; choose another model",
    ),
}
"""Those that PREPARE refuses, with its words."""
