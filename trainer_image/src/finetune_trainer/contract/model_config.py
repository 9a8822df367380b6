"""The members of a base model's config.json that decide its memory (contract/model_config.json)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NESTED = "text_config"
MEMBERS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_bias",
    "attention_out_bias",
    "mlp_bias",
    "bias",
    "use_bias",
    "ffn_hidden_size",
    "num_kv_heads",
    "multi_query",
    "new_decoder_architecture",
    "parallel_attn",
    "num_ln_in_parallel_attn",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_intermediate_size",
    "moe_num_experts",
    "num_experts_per_tok",
)
_MAXIMUM_TEXT = 64
_INTEGERS = range(-(2**63), 2**63)


def select_config_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the MEMBERS that a config.json has, and those of its nested text config.

    A null stays, because it differs from a missing member. A value that is no scalar of the contract's size becomes
    the beginning of its text. A reader that needs a number there then rejects it instead of assuming a default.
    """
    selected: dict[str, Any] = {name: _scalar(config[name]) for name in MEMBERS if name in config}
    nested = config.get(NESTED)
    if isinstance(nested, dict):
        selected[NESTED] = {name: _scalar(nested[name]) for name in MEMBERS if name in nested}
    return selected


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INTEGERS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)[:_MAXIMUM_TEXT]
