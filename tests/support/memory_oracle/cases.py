"""Cases for comparing the memory estimate: published model shapes and plans that cover every axis of sizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_operator.sizing.memory.training_plan import TrainingPlan


@dataclass(frozen=True)
class Case:
    """One run. `config` has the model's sizes from config.json; `full` runs all layers instead of a fit."""

    name: str
    config: dict[str, Any]
    plan: TrainingPlan
    full: bool = False


def decoder_config(
    family: str,
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    shared: int,
    **more: Any,
) -> dict[str, Any]:
    """Return the config of a decoder with `shared` key and value heads."""
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "tie_word_embeddings": False,
        **more,
    }


_TIED = {"tie_word_embeddings": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2-7b": decoder_config("llama", 32000, 4096, 11008, 32, 32, 32),
    "llama-3.1-8b": decoder_config("llama", 128256, 4096, 14336, 32, 32, 8, head_dim=128),
    "llama-3.2-1b": decoder_config("llama", 128256, 2048, 8192, 16, 32, 8, head_dim=64, **_TIED),
    "smollm2-135m": decoder_config("llama", 49152, 576, 1536, 30, 9, 3, **_TIED),
    "mistral-7b": decoder_config("mistral", 32768, 4096, 14336, 32, 32, 8, head_dim=128, sliding_window=None),
    "mistral-7b-v0.1": decoder_config("mistral", 32000, 4096, 14336, 32, 32, 8, sliding_window=4096),
    "mistral-24b": decoder_config("mistral", 131072, 5120, 32768, 40, 32, 8, head_dim=128, sliding_window=None),
    "qwen2.5-0.5b": decoder_config("qwen2", 151936, 896, 4864, 24, 14, 2, **_TIED),
    "qwen2.5-7b": decoder_config("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "qwen3-1.7b": decoder_config("qwen3", 151936, 2048, 6144, 28, 16, 8, head_dim=128, **_TIED),
    "qwen3-8b": decoder_config("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128),
    "qwen3-32b": decoder_config("qwen3", 151936, 5120, 25600, 64, 64, 8, head_dim=128),
    "gemma-2b": decoder_config("gemma", 256000, 2048, 16384, 18, 8, 1, head_dim=256, **_TIED),
    "gemma-7b": decoder_config("gemma", 256000, 3072, 24576, 28, 16, 16, head_dim=256, **_TIED),
    "gemma-2-2b": decoder_config(
        "gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256, sliding_window=4096, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, **_TIED,
    ),
    "gemma-3-1b": decoder_config("gemma3_text", 262144, 1152, 6912, 26, 4, 1, head_dim=256, sliding_window=512, **_TIED),
    "gemma-3-4b": decoder_config("gemma3_text", 262208, 2560, 10240, 34, 8, 4, head_dim=256, sliding_window=1024, **_TIED),
    "phi-3-mini": decoder_config("phi3", 32064, 3072, 8192, 32, 32, 32, sliding_window=2047, pad_token_id=32000),
    "phi-4": decoder_config("phi3", 100352, 5120, 17920, 40, 40, 10, sliding_window=None, pad_token_id=100349),
    "smollm3-3b": decoder_config("smollm3", 128256, 2048, 11008, 36, 16, 4, **_TIED),
    "olmo-1b": decoder_config("olmo", 50304, 2048, 8192, 16, 16, 16, **_TIED),
    "olmo-2-7b": decoder_config("olmo2", 100352, 4096, 11008, 32, 32, 32),
    "olmo-3-7b": decoder_config("olmo3", 100278, 4096, 11008, 32, 32, 32, sliding_window=4096),
    "granite-3.1-2b": decoder_config("granite", 49155, 2048, 8192, 40, 32, 8, **_TIED),
    "starcoder2-3b": decoder_config("starcoder2", 49152, 3072, 12288, 30, 24, 2, sliding_window=4096, **_TIED),
    "seed-oss-36b": decoder_config("seed_oss", 155136, 5120, 27648, 64, 80, 8, head_dim=128, attention_bias=True),
    "afm-4.5b": decoder_config("arcee", 128004, 2560, 18432, 36, 20, 4),
    "ernie-4.5-0.3b": decoder_config("ernie4_5", 103424, 1024, 3072, 18, 16, 2, head_dim=128, **_TIED),
    "glm-4-9b": decoder_config("glm", 151552, 4096, 13696, 40, 32, 2, head_dim=128, attention_bias=True),
    "glm-4-9b-0414": decoder_config("glm4", 151552, 4096, 13696, 40, 32, 2, head_dim=128),
    "exaone-4-1.2b": decoder_config(
        "exaone4", 102400, 2048, 4096, 30, 32, 8, head_dim=64, sliding_window=None, layer_types=["full_attention"] * 30, **_TIED,
    ),
}  # fmt: skip


def _case(model: str, length: int, rows: int = 1, *, full: bool = False, **plan: Any) -> Case:
    settings = " ".join(f"{name}={value}" for name, value in plan.items())
    return Case(
        f"{model} {rows}x{length} {settings}".strip(),
        CONFIGS[model],
        TrainingPlan(length, micro_batch_size=rows, **plan),
        full=full,
    )


_KEPT: dict[str, Any] = {"gradient_checkpointing": False}
_ATTENTION: dict[str, Any] = {"target_modules": "AttentionOnly"}

CASES: tuple[Case, ...] = (
    # The most common shapes, with different lengths, rows, accumulation steps and ranks.
    _case("mistral-7b", 2048, gradient_accumulation=16),
    _case("mistral-7b", 8192, rank=64),
    _case("mistral-7b", 1024, 4, dropout=True),
    _case("mistral-7b", 1024, **_KEPT),
    _case("mistral-7b", 512, 2, **_KEPT, dropout=True),
    _case("mistral-7b", 2048, rank=8, **_ATTENTION),
    _case("mistral-7b", 512, variant="DoRA"),
    _case("mistral-7b-v0.1", 8192),
    _case("mistral-24b", 2048, rank=32),
    _case("llama-2-7b", 4096),
    _case("llama-3.1-8b", 2048, 2, gradient_accumulation=4),
    _case("llama-3.1-8b", 512, **_KEPT, **_ATTENTION),
    _case("llama-3.2-1b", 1000, 3, full=True),
    _case("smollm2-135m", 777, 8),
    _case("qwen2.5-0.5b", 2048, 4),
    _case("qwen2.5-7b", 2048),
    _case("qwen2.5-7b", 1024, 2, dropout=True, rank=128),
    _case("qwen3-1.7b", 4096, 2),
    _case("qwen3-8b", 1536, **_KEPT),
    _case("qwen3-32b", 4096, rank=64),
    # Every family that the trainer supports.
    _case("gemma-2b", 2048, full=True),
    _case("gemma-7b", 1024, rank=32),
    _case("gemma-2-2b", 1024),
    _case("gemma-2-2b", 4096),
    _case("gemma-2-2b", 512, **_KEPT),
    _case("gemma-3-1b", 256, 4),
    _case("gemma-3-1b", 2048, 2),
    _case("gemma-3-4b", 4096),
    _case("phi-3-mini", 2000),
    _case("phi-3-mini", 1024, 2, **_KEPT),
    _case("phi-4", 2048),
    _case("smollm3-3b", 2048, 2),
    _case("olmo-1b", 2048, 2, full=True),
    _case("olmo-2-7b", 2048),
    _case("olmo-3-7b", 4096),
    _case("granite-3.1-2b", 4096, rank=8),
    _case("starcoder2-3b", 2048, dropout=True),
    _case("seed-oss-36b", 2048),
    _case("afm-4.5b", 2048, **_ATTENTION),
    _case("ernie-4.5-0.3b", 4096, 2, full=True),
    _case("glm-4-9b", 2048),
    _case("glm-4-9b-0414", 1024, 2),
    _case("exaone-4-1.2b", 2048, rank=256),
)
