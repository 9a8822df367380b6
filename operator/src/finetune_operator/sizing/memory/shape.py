"""The shape of a language model, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_operator.sizing.memory.families import (
    FAMILIES,
    Attention,
    Family,
    Mlp,
    Norm,
    NormPlaces,
    QkNorm,
    Rope,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Members that only mixture-of-experts configs have, whatever the family's name.
_EXPERT_MEMBERS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_intermediate_size",
    "moe_num_experts",
    "num_experts_per_tok",
)
_LARGEST = 1 << 40


class ShapeUnknownError(Exception):
    """The model's memory cannot be computed. The message names the requirement and the value found."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a layer: `outputs` x `inputs`, with or without a bias of `outputs`."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    in_attention: bool = False

    @property
    def weights(self) -> int:
        """Elements of the matrix, without its bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with equal layers; sizes are elements, not bytes.

    `linears` are the matrices of one layer. `vectors` are the elements of the layer's norms; biases belong to their
    matrices. `final_vectors` is the last norm. `softcap` is true if attention scores are capped, which no fused kernel
    does, and `final_softcap` if logits are. `sliding_window` is in tokens and applies to `sliding_layers` of the layers;
    it is None if every layer sees all tokens. `parallel_norms` counts the norms before parallel blocks. The other
    fields are as in `families.Family`.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    key_value_heads: int
    head_dim: int
    tied: bool
    linears: tuple[Linear, ...]
    vectors: int
    final_vectors: int
    gated: bool
    softcap: bool
    sliding_window: int | None
    sliding_layers: int = 0
    final_softcap: bool = False
    attention: Attention = "Separate"
    mlp: Mlp = "Gated"
    norm: Norm = "Rms"
    norm_places: NormPlaces = "Pre"
    parallel_norms: int = 1
    qk_norm: QkNorm = "None"
    rope: Rope = "Whole"
    always_masked: bool = False
    scaled_residual: bool = False

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.key_value_heads * self.head_dim

    @property
    def attention_names(self) -> frozenset[str]:
        """Names of the matrices of the attention block."""
        return frozenset(linear.name for linear in self.linears if linear.in_attention)

    @property
    def linear_weights(self) -> int:
        """Elements of all layers' matrices, which are quantized."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def embedding_weights(self) -> int:
        """Elements of the embedding and, if it is not tied, of the output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def other_weights(self) -> int:
        """Elements of norms and biases."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        return self.layers * (self.vectors + biases) + self.final_vectors

    @property
    def parameters(self) -> int:
        """Elements of the whole model."""
        return self.linear_weights + self.embedding_weights + self.other_weights


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape from a config.json, or from the text part of a config that nests one.

    Raises ShapeUnknownError for an unknown family, a mixture of experts, or a member that is not a sensible number.
    """
    nested = config.get("text_config")
    if isinstance(nested, dict):
        # transformers reads this member from the wrapper, so the wrapper's value counts.
        tied = (
            {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        )
        config = {**nested, **tied}
    experts = [name for name in _EXPERT_MEMBERS if _is_several(config.get(name))]
    if experts:
        raise ShapeUnknownError(
            f"the model must be dense, found a mixture of experts ({experts[0]} = {config[experts[0]]}); "
            "its experts would stay unquantized, so choose a dense model"
        )
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or family is None:
        raise ShapeUnknownError(
            f"model_type must be a supported family ({', '.join(sorted(FAMILIES))}), found {name!r}"
        )
    reader = _Config(config, family)
    heads = reader.number("num_attention_heads")
    hidden = reader.number("hidden_size")
    head_dim = reader.number("head_dim", hidden // heads)
    key_value_heads = reader.number("num_key_value_heads", heads)
    if family.attention == "Falcon" and not reader.flag("new_decoder_architecture"):
        key_value_heads = 1 if reader.flag("multi_query") else heads
    intermediate = reader.number("intermediate_size", 4 * hidden)
    vectors = _norms(family, reader, hidden) + _qk_norm(family, heads, key_value_heads, head_dim)
    final = hidden * (1 + family.norm_bias) if family.final_norm else 0
    window = _window(family, reader)
    layers = reader.number("num_hidden_layers")
    places: NormPlaces = family.norm_places
    if places == "Parallel" and not reader.flag("parallel_attn"):
        places = "Pre"
    return ModelShape(
        family=name,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        vocabulary=reader.number("vocab_size"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        tied=reader.flag("tie_word_embeddings"),
        linears=(
            *_attention(family, reader, hidden, heads * head_dim, key_value_heads * head_dim),
            *_mlp(family, reader, hidden, intermediate),
        ),
        vectors=vectors,
        final_vectors=final,
        gated=family.mlp in {"Gated", "FusedGated"},
        softcap=reader.value("attn_logit_softcapping") is not None,
        sliding_window=window,
        sliding_layers=-(-layers * family.sliding[0] // family.sliding[1]) if window is not None else 0,
        final_softcap=reader.value("final_logit_softcapping") is not None,
        attention=family.attention,
        mlp=family.mlp,
        norm=family.norm,
        norm_places=places,
        parallel_norms=_parallel_norms(reader) if places == "Parallel" else 1,
        qk_norm=family.qk_norm,
        rope=family.rope,
        always_masked=family.always_masked,
        scaled_residual=family.scaled_residual,
    )


def _window(family: Family, reader: _Config) -> int | None:
    if family.window_flag is not None and not reader.flag(family.window_flag):
        return None
    return reader.optional("sliding_window")


class _Config:
    """A config, read with its family's defaults and spellings."""

    def __init__(self, config: Mapping[str, Any], family: Family) -> None:
        self._config = config
        self._family = family

    def value(self, name: str) -> Any:
        """Return the config's value, else the family's default, else None."""
        for spelling in (name, self._family.aliases.get(name)):
            if spelling is not None and self._config.get(spelling) is not None:
                return self._config[spelling]
        if name in self._config:
            return None
        return self._family.defaults.get(name)

    def number(self, name: str, otherwise: int | None = None) -> int:
        """Return a positive whole number."""
        value = self.value(name)
        if value is None:
            value = otherwise
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST:
            raise ShapeUnknownError(f"config.json's {name} must be a positive whole number, found {value!r}")
        return value

    def optional(self, name: str) -> int | None:
        """Return a positive whole number, or None if the config has none."""
        return None if self.value(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Return a boolean, False if the config has none."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise ShapeUnknownError(f"config.json's {name} must be true or false, found {value!r}")
        return bool(value)

    def bias(self, rule: bool | str) -> bool:  # noqa: FBT001 -- a constant or the member that decides
        """Return whether a matrix has a bias."""
        return self.flag(rule) if isinstance(rule, str) else rule


def _attention(
    family: Family, reader: _Config, hidden: int, query: int, key_value: int
) -> tuple[Linear, ...]:
    bias, output_bias = reader.bias(family.qkv_bias), reader.bias(family.output_bias)
    fused = query + 2 * key_value
    if family.attention == "Falcon":
        return (
            Linear("query_key_value", hidden, fused, bias, in_attention=True),
            Linear("dense", query, hidden, output_bias, in_attention=True),
        )
    if family.attention == "FusedQkv":
        return (
            Linear("qkv_proj", hidden, fused, bias, in_attention=True),
            Linear("o_proj", query, hidden, output_bias, in_attention=True),
        )
    return (
        Linear("q_proj", hidden, query, bias, in_attention=True),
        Linear("k_proj", hidden, key_value, bias, in_attention=True),
        Linear("v_proj", hidden, key_value, bias, in_attention=True),
        Linear("o_proj", query, hidden, output_bias, in_attention=True),
    )


def _mlp(family: Family, reader: _Config, hidden: int, intermediate: int) -> tuple[Linear, ...]:
    bias = reader.bias(family.mlp_bias)
    *into, out = family.mlp_names
    width = 2 * intermediate if family.mlp == "FusedGated" else intermediate
    return (*(Linear(name, hidden, width, bias) for name in into), Linear(out, intermediate, hidden, bias))


def _norms(family: Family, reader: _Config, hidden: int) -> int:
    count = family.norms
    if family.attention == "Falcon" and reader.flag("parallel_attn"):
        count = _parallel_norms(reader)
    return count * hidden * (1 + family.norm_bias)


def _parallel_norms(reader: _Config) -> int:
    two = reader.flag("new_decoder_architecture") and reader.value("num_ln_in_parallel_attn") != 1
    return 2 if two else 1


def _qk_norm(family: Family, heads: int, key_value_heads: int, head_dim: int) -> int:
    if family.qk_norm == "PerHead":
        return 2 * head_dim
    if family.qk_norm == "FullWidth":
        return (heads + key_value_heads) * head_dim
    return 0


def _is_several(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
