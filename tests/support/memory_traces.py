"""Memory traces of invented models, as PREPARE reports them."""

from __future__ import annotations

from typing import Any

_KIB_OF_A_GIB = 1 << 20
WITHOUT_FORMULA: dict[str, Any] = {
    "model_type": "vaultgemma",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""A tiny config of a family that sizing knows by a trace alone."""


def memory_trace(gibibytes: float, length: int = 60, **changes: Any) -> dict[str, Any]:
    """Return the trace of a model that needs `gibibytes` with one row, and a tenth more for each further row."""

    def peaks(rows: int, factor: float = 1.0) -> list[int]:
        held = int(gibibytes * _KIB_OF_A_GIB * 0.8 * factor)
        peak = int(gibibytes * _KIB_OF_A_GIB * (0.9 + 0.1 * rows) * factor)
        return [held, peak, peak, held, held]

    return {
        "length": length,
        "rank": 16,
        "quantized": {"modules": 224, "parameters": 1 << 30, "bytes": int(gibibytes * (1 << 29))},
        "adapted": {"modules": 224, "parameters": 1 << 20, "bytes": 1 << 22},
        "embeddings": {"modules": 2, "parameters": 1 << 26, "bytes": 1 << 27},
        "optimizers": {"AdamW": 1 << 23, "AdamW8Bit": 1 << 21},
        "rungs": [
            *([rows, 1, 0, *peaks(rows)] for rows in (1, 2, 4, 8, 16)),
            *([rows, 0, 0, *peaks(rows, 1.5)] for rows in (1, 2, 4, 8, 16)),
        ],
        **changes,
    }
