"""A real but tiny tokenizer, models with random weights, and rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXTS = [
    "the cat sat on the mat and said hello to you",
    "what is the colour of the sky today",
    "0123456789 +-=",
]
_FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen3": Qwen3Config,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with ChatML's control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def write_tiny_model(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, *, tied: bool = False
) -> Path:
    """Write a random two-layer model of `family` with the tiny tokenizer."""
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer()
    config = _FAMILIES[family](
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversation_rows(count: int) -> list[dict[str, Any]]:
    """Return `count` different conversations of one turn."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"what is {number} + 1"},
                {"role": "assistant", "content": f"it is {number + 1}"},
            ]
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def dataset_of(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the run spec's `dataset` member with changed members."""
    return {**document["dataset"], **changes}
