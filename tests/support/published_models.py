"""Models with the published config.json of a family: every member as published, and only the sizes are scaled down.

A size that gives another shape than its neighbor (a head that is no fraction of the hidden size, one head of keys for
several of queries, a tied head) keeps that relation. Windows are shorter than the rows, so that they take effect. No
number of inputs is a multiple of 64, and no vocabulary is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from finetune_trainer.model.load import attention_implementation
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.chat_templates.families import families

_TEXTS = ["what is the number after 12 and 345", "the number is 6789", "it is 0 and 1"]
_UNUSED_ROWS = 3
"""Rows of the embedding that no token has: published vocabularies are larger than their tokenizers."""
_TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
WINDOW = 12


@dataclass(frozen=True)
class Published:
    """A model as its family publishes it.

    `config` names tokens by their text. `ends` are the end tokens of the generation config; the first one is the
    tokenizer's. `specials` are the control tokens of `template`, which is a name in trl's folder, or in `families()`.
    """

    config: dict[str, Any]
    template: str
    ends: tuple[str, ...]
    specials: tuple[str, ...] = ()
    bos: str | None = None
    pad: str | None = None
    variant: str = "Standard"
    arguments: dict[str, Any] = field(default_factory=dict)


ALWAYS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
_IM = ("<|im_start|>", "<|im_end|>")

PUBLISHED: dict[str, Published] = {
    "Mistral 7B v0.1": Published(
        {
            **ALWAYS,
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
            "transformers_version": "4.34.0.dev0",
        },
        "mistral_v01",
        ("</s>",),
        bos="<s>",
        variant="RankStabilized",
    ),
    "Llama 3.1": Published(
        {
            **ALWAYS,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": 131072,
            "pretraining_tp": 1,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "transformers_version": "4.42.3",
        },
        "trl:llama3_1",
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        ("<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
    ),
    "Qwen2.5 0.5B": Published(
        {
            **ALWAYS,
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "max_position_embeddings": 32768,
            "max_window_layers": 21,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "transformers_version": "4.43.1",
            "use_sliding_window": False,
        },
        "trl:qwen2_5",
        ("<|im_end|>", "<|endoftext|>"),
        ("<|im_start|>",),
        pad="<|endoftext|>",
    ),
    "Qwen3 4B": Published(
        {
            **ALWAYS,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 20,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "transformers_version": "4.51.0",
            "use_sliding_window": False,
        },
        "trl:qwen3",
        ("<|im_end|>", "<|endoftext|>"),
        ("<|im_start|>",),
        pad="<|endoftext|>",
        variant="DoRA",
        arguments={"enable_thinking": False},
    ),
    # One head of keys, tied by the family's default, and every sixth layer attends to the whole row.
    "Gemma 3 1B": Published(
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "head_dim": 20,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 72,
            "initializer_range": 0.02,
            "intermediate_size": 136,
            "max_position_embeddings": 32768,
            "num_attention_heads": 4,
            "num_hidden_layers": 7,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 20,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 6,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "use_cache": True,
        },
        "trl:gemma3",
        ("<end_of_turn>", "<eos>"),
        ("<start_of_turn>",),
        bos="<bos>",
        pad="<pad>",
    ),
    # One matrix for queries, keys and values, one for gate and up, and a rotary embedding with factors per frequency.
    "Phi-3 mini 128k": Published(
        {
            **ALWAYS,
            "architectures": ["Phi3ForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            "model_type": "phi3",
            "attention_bias": False,
            "embd_pdrop": 0.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 6,
            "original_max_position_embeddings": 4096,
            "resid_pdrop": 0.0,
            "rope_scaling": {
                "long_factor": [1.08, 1.11, 1.14, 1.34, 1.59, 4.05],
                "short_factor": [1.0, 1.02, 1.03, 1.05, 1.05, 1.08],
                "type": "longrope",
            },
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": False,
            "transformers_version": "4.40.2",
        },
        "trl:phi3",
        ("<|end|>", "<|endoftext|>", "<|assistant|>"),
        ("<|user|>", "<|system|>"),
        bos="<s>",
        pad="<|endoftext|>",
    ),
    # Every fourth layer has no rotary embedding.
    "SmolLM3 3B": Published(
        {
            **ALWAYS,
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "attention_bias": False,
            "layer_types": ["full_attention"] * 4,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "num_hidden_layers": 4,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "transformers_version": "4.54.0.dev0",
            "use_sliding_window": False,
        },
        "smollm3",
        ("<|im_end|>",),
        ("<|im_start|>",),
        pad="<|pad|>",
        arguments={"enable_thinking": False},
    ),
    # Norms behind attention and feed-forward, and on all queries and keys at once.
    "OLMo 2 7B": Published(
        {
            **ALWAYS,
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "attention_bias": False,
            "max_position_embeddings": 4096,
            "num_key_value_heads": 6,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
            "transformers_version": "4.47.0.dev0",
        },
        "tulu",
        ("<|endoftext|>",),
        ("<|user|>", "<|assistant|>", "<|system|>"),
        pad="<|pad|>",
    ),
}


def tokenizer_of(model: Published) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the model's control tokens and template."""
    named = (model.bos, model.pad, *model.ends, *model.specials)
    specials = list(dict.fromkeys(token for token in named if token is not None))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=model.bos, eos_token=model.ends[0], pad_token=model.pad
    )
    kind, _, name = model.template.rpartition(":")
    tokenizer.chat_template = (
        (_TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") if kind else families()[name].source
    )
    return tokenizer


def write_published(folder: Path, model: Published) -> Path:
    """Write random weights that every part of the model shapes, the tokenizer, and the configs as published."""
    tokenizer = tokenizer_of(model)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ends = [tokenizer.convert_tokens_to_ids(token) for token in model.ends]
    config = {
        "vocab_size": len(tokenizer) + _UNUSED_ROWS,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        **{name: value for name, value in ids.items() if value is not None},
        **model.config,
    }
    folder.mkdir(parents=True)
    text = json.dumps(config, indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    torch.manual_seed(7)
    loaded = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    network: Any = AutoModelForCausalLM.from_config(
        loaded, dtype=torch.float32, attn_implementation=attention_implementation(loaded)
    )
    _shape_the_logits(network)
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size="150KB")
    tokenizer.save_pretrained(folder)
    # transformers 5 saves other members than families publish.
    (folder / "config.json").write_text(text, encoding="utf-8")
    generation = {name: value for name, value in ids.items() if value is not None}
    (folder / "generation_config.json").write_text(
        json.dumps({**generation, "eos_token_id": config["eos_token_id"]}), encoding="utf-8"
    )
    return folder


def _shape_the_logits(network: Any) -> None:
    """Give every matrix, norm and bias values that matter. Embeddings are small, or a tied head would repeat its input."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1 if "embed" in name else 1.2 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
