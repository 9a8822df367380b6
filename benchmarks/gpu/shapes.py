"""The models and runs of the benchmark: sizes of published models on a GPU, and tiny ones in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_parameters": _LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "gemma-2b": {
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
"""The members of each model's config.json that decide its shape."""
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class MemoryRun:
    """One configuration whose memory is measured. `rows` share a pass, and a step has two passes."""

    model: str
    length: int
    rows: int
    checkpointing: bool = True
    rank: int = 16
    targets: Literal["AllLinear", "AttentionOnly"] = "AllLinear"
    packed: bool = True

    @property
    def name(self) -> str:
        """Text that tells it apart from the others."""
        parts = [
            self.model,
            f"{self.rows}x{self.length}",
            f"rank {self.rank}",
            "" if self.targets == "AllLinear" else "attention only",
            "checkpointed" if self.checkpointing else "kept",
            "packed" if self.packed else "grouped",
        ]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Rows:
    """The rows of a step: all of one `length`, or lengths of chats up to it."""

    length: int
    per_step: int
    per_pass: int
    median: int | None = None


@dataclass(frozen=True)
class Size:
    """All sizes of a run of the benchmark. `loading` and `running` name the models of measurements 2, and 5 to 8."""

    configs: dict[str, dict[str, Any]]
    memory: tuple[MemoryRun, ...]
    speed: tuple[str, ...]
    rows: dict[str, Rows]
    loading: str
    running: str
    starts: tuple[str, ...]
    measured_steps: int
    matrix: int
    copied_bytes: int
    running_length: int
    """Tokens of a row in measurements 5 to 8."""
    rank_steps: int
    """Measured steps of measurement 8."""


REAL = Size(
    configs=PUBLISHED,
    memory=(
        MemoryRun("qwen3-1.7b", 2048, 1),
        MemoryRun("qwen3-1.7b", 2048, 8),
        MemoryRun("qwen3-1.7b", 4096, 1, checkpointing=False),
        MemoryRun("llama-3.1-8b", 2048, 1),
        MemoryRun("llama-3.1-8b", 4096, 2),
        MemoryRun("llama-3.1-8b", 4096, 1, checkpointing=False),
        MemoryRun("llama-3.1-8b", 8192, 1),
        MemoryRun("llama-3.1-8b", 2048, 2, rank=64),
        MemoryRun("llama-3.1-8b", 2048, 1, checkpointing=False, rank=8, targets="AttentionOnly"),
        MemoryRun("llama-3.1-8b", 4096, 2, packed=False),
        MemoryRun("mistral-7b", 2048, 4),
        MemoryRun("gemma-2b", 2048, 2),
    ),
    speed=("llama-3.1-8b", "qwen3-1.7b"),
    rows={"full": Rows(4096, 4, 2), "chats": Rows(4096, 64, 2, median=200)},
    loading="qwen3-1.7b",
    running="qwen3-1.7b",
    starts=("first", "second"),
    measured_steps=3,
    matrix=8192,
    copied_bytes=4 << 30,
    running_length=1024,
    rank_steps=10,
)
DRY = Size(
    configs={
        name: config | _TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        for name, config in PUBLISHED.items()
    },
    memory=(
        MemoryRun("qwen3-1.7b", 48, 2),
        MemoryRun("llama-3.1-8b", 32, 1, checkpointing=False, rank=8, targets="AttentionOnly"),
        MemoryRun("gemma-2b", 32, 2, packed=False),
    ),
    speed=("llama-3.1-8b",),
    rows={"full": Rows(64, 4, 2), "chats": Rows(64, 8, 2, median=12)},
    loading="qwen3-1.7b",
    running="qwen3-1.7b",
    starts=("first", "second"),
    measured_steps=1,
    matrix=64,
    copied_bytes=1 << 20,
    running_length=24,
    rank_steps=2,
)
