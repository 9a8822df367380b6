"""Model shapes that are small enough to size by hand."""

from __future__ import annotations

from typing import Any

from finetune_operator.sizing.memory.shape import ModelShape, model_shape

_NEEDED: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "num_local_experts": 0,
        "layer_types": ["attention"] * 2,
        "shared_intermediate_size": 256,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
"""Members without which a family has experts or other sizes."""


def small_model(family: str = "llama", **members: Any) -> ModelShape:
    """A model with two layers, hidden size 64, MLP size 256, four query heads of 16, and 1,000 vocabulary entries.

    A llama has two key heads, so its matrices (inputs x outputs) are q and o 64 x 64, k and v 64 x 32, gate and up
    64 x 256, down 256 x 64: 61,440 weights a layer.
    """
    return model_shape(
        {
            "model_type": family,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 1000,
            **_NEEDED.get(family, {}),
            **members,
        }
    )
