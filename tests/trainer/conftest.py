"""A tokenizer and models that are real but tiny, and run specs around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.contract.run_spec import RunSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

if TYPE_CHECKING:
    from collections.abc import Callable


_REPOSITORY = Path(__file__).parents[2]
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama in bf16."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


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


@pytest.fixture
def run_document(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """Return a run spec for the tiny model and 20 rows, with everything else below the test's own folder."""
    dataset = write_rows(tmp_path / "rows.jsonl", conversation_rows(20))
    return {
        "version": "1.0",
        "job": {"namespace": "team", "name": "tiny", "uid": "11111111-2222-3333-4444-555555555555"},
        "specHash": "sha256:" + "0" * 64,
        "attempt": 0,
        "device": "cpu",
        "model": {"source": {"kind": "Directory", "path": str(tiny_model)}, "chatTemplateArguments": {}},
        "dataset": {
            "source": {"kind": "File", "path": str(dataset)},
            "validation": {"fraction": 0.1},
            "reasoning": "Keep",
            "rejectedRows": {"maximumFraction": 0.01},
        },
        "training": {
            "maximumSteps": 2,
            "learningRate": 0.001,
            "effectiveBatchSize": 4,
            "microBatchSize": 2,
            "maximumLength": 256,
            "lora": {
                "rank": 4,
                "alpha": 8,
                "dropout": 0,
                "targetModules": "AllLinear",
                "variant": "Standard",
            },
            "quantization": "NF4",
            "seed": 42,
            "schedule": {"type": "Cosine", "warmupRatio": 0.0},
            "gradientCheckpointing": False,
            "checkpoint": {"intervalSteps": 100},
        },
        "evaluation": {"maximumRows": 8},
        "output": {
            "artifacts": ["Adapter", "Merged"],
            "destination": {
                "kind": "Directory",
                "path": str(tmp_path / "out"),
                "uri": "pvc://team/claim/tiny",
            },
        },
        "workspace": {"path": str(tmp_path / "workspace")},
        "telemetry": {"port": 18080, "host": "127.0.0.1"},
        "limits": {"datasetBytes": 10_000_000, "downloadSeconds": 60, "allowPrivateAddresses": False},
    }


@pytest.fixture
def make_run(run_document: dict[str, Any]) -> Callable[..., RunSpec]:
    """Return a maker of run specs: keyword arguments replace top-level members of the document."""

    def make(**changes: Any) -> RunSpec:
        return RunSpec.model_validate({**run_document, **changes})

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of SmolLM2-135M-Instruct, which `make assets` unpacks from its package."""
    folder = _REPOSITORY / ".finetune" / "volumes" / "quickstart" / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"the real model must be at {folder}: run scripts/quickstart_assets.py first")
    return folder
