"""Model families as data: the defaults that a config.json omits, and the matrices of a layer.

A config.json written by transformers 5 contains only differences from the family's defaults, so each family has its
defaults here. Each record is compared with transformers' own modules on the meta device
(tests/unit/operator/sizing/memory/test_shape.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Attention = Literal["Separate", "FusedQkv", "Falcon"]
Mlp = Literal["Gated", "FusedGated", "Plain", "Squared"]
QkNorm = Literal["None", "PerHead", "FullWidth"]
Norm = Literal["Rms", "RmsFloat", "Layer", "LayerFloat"]
NormPlaces = Literal["Pre", "PreAndPost", "Post", "Parallel"]
Rope = Literal["Whole", "Joined", "Float"]


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    `attention` says whether q, k and v are separate matrices. `mlp` is the form of the block: gated
    (down(act(gate x) * up x)), gated with gate and up in one matrix, plain (down(act(up x))), or plain with a squared
    rectifier. `norms` counts the vectors of hidden size in a layer's norms. `qkv_bias`, `output_bias` and `mlp_bias` are
    booleans, or the name of the config member that decides. `aliases` are the family's own spellings of members.
    """

    defaults: Mapping[str, Any]
    attention: Attention = "Separate"
    mlp: Mlp = "Gated"
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    norms: int = 2
    norm_bias: bool = False
    final_norm: bool = True
    qk_norm: QkNorm = "None"
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    norm: Norm = "Rms"
    norm_places: NormPlaces = "Pre"
    rope: Rope = "Whole"
    always_masked: bool = False
    sliding: tuple[int, int] = (1, 1)
    window_flag: str | None = None
    scaled_residual: bool = False


def _defaults(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, **others: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": False,
        **others,
    }


_LLAMA = _defaults(32000, 4096, 11008, 32, 32)
_MISTRAL = _defaults(32000, 4096, 14336, 32, 32, num_key_value_heads=8, sliding_window=4096)
_QWEN2 = _defaults(151936, 4096, 22016, 32, 32, num_key_value_heads=32)
_OLMO = _defaults(50304, 4096, 11008, 32, 32)
_GEMMA2 = _defaults(
    256000, 2304, 9216, 26, 8, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True, sliding_window=4096
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_LLAMA, qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Family(_MISTRAL),
    "ministral": Family(_MISTRAL),
    "qwen2": Family(_QWEN2, qkv_bias=True, window_flag="use_sliding_window"),
    "qwen3": Family(
        {**_QWEN2, "head_dim": 128},
        qk_norm="PerHead",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        window_flag="use_sliding_window",
    ),
    "gemma": Family(
        _defaults(
            256000, 3072, 24576, 28, 16, num_key_value_heads=16, head_dim=256, tie_word_embeddings=True
        ),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="RmsFloat",
    ),
    "gemma2": Family(
        {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        norms=4,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="RmsFloat",
        norm_places="PreAndPost",
        sliding=(1, 2),
    ),
    "gemma3_text": Family(
        {**_GEMMA2, "vocab_size": 262208},
        norms=4,
        qk_norm="PerHead",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="RmsFloat",
        norm_places="PreAndPost",
        sliding=(5, 6),
    ),
    "phi3": Family(
        _defaults(32064, 3072, 8192, 32, 32),
        attention="FusedQkv",
        mlp="FusedGated",
        mlp_names=("gate_up_proj", "down_proj"),
        rope="Joined",
    ),
    "smollm3": Family(
        _defaults(128256, 2048, 11008, 36, 16, num_key_value_heads=4, tie_word_embeddings=True),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        window_flag="use_sliding_window",
    ),
    "olmo": Family(
        _OLMO,
        norms=0,
        final_norm=False,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="LayerFloat",
    ),
    "olmo2": Family(
        _OLMO,
        qk_norm="FullWidth",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="RmsFloat",
        norm_places="Post",
    ),
    "olmo3": Family(
        {**_OLMO, "sliding_window": 4096},
        qk_norm="FullWidth",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm="RmsFloat",
        norm_places="Post",
        sliding=(3, 4),
    ),
    "granite": Family(
        _LLAMA,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        scaled_residual=True,
    ),
    "falcon": Family(
        _defaults(
            65024,
            4544,
            18176,
            32,
            71,
            multi_query=True,
            new_decoder_architecture=False,
            parallel_attn=True,
            num_ln_in_parallel_attn=None,
            tie_word_embeddings=True,
        ),
        attention="Falcon",
        mlp="Plain",
        mlp_names=("dense_h_to_4h", "dense_4h_to_h"),
        norm_bias=True,
        qkv_bias="bias",
        output_bias="bias",
        mlp_bias="bias",
        aliases={"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads"},
        norm="Layer",
        norm_places="Parallel",
        always_masked=True,
    ),
    "starcoder2": Family(
        _defaults(49152, 3072, 12288, 30, 24, num_key_value_heads=2, use_bias=True, tie_word_embeddings=True),
        mlp="Plain",
        mlp_names=("c_fc", "c_proj"),
        norm_bias=True,
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        norm="Layer",
    ),
    "seed_oss": Family(
        _defaults(155136, 4096, 27648, 64, 80, num_key_value_heads=8, head_dim=128, attention_bias=True),
        qkv_bias="attention_bias",
        output_bias="attention_out_bias",
        mlp_bias="mlp_bias",
    ),
    "arcee": Family(
        _defaults(32000, 2560, 18432, 32, 32),
        mlp="Squared",
        mlp_names=("up_proj", "down_proj"),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "ernie4_5": Family(
        _defaults(103424, 1024, 3072, 18, 16, num_key_value_heads=2, head_dim=128, tie_word_embeddings=True),
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        rope="Float",
    ),
    "glm": Family(
        _defaults(151552, 4096, 13696, 40, 32, num_key_value_heads=2, head_dim=128, attention_bias=True),
        mlp="FusedGated",
        mlp_names=("gate_up_proj", "down_proj"),
        qkv_bias="attention_bias",
        rope="Joined",
    ),
    "glm4": Family(
        _defaults(151552, 4096, 13696, 40, 32, num_key_value_heads=2, head_dim=128, attention_bias=True),
        mlp="FusedGated",
        mlp_names=("gate_up_proj", "down_proj"),
        norms=4,
        qkv_bias="attention_bias",
        rope="Joined",
        norm_places="PreAndPost",
    ),
    "exaone4": Family(
        _defaults(102400, 4096, 16384, 32, 32, sliding_window=4096),
        qk_norm="PerHead",
        norm_places="Post",
        sliding=(3, 4),
    ),
}
