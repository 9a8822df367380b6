"""The shape of a language model, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.contract.model_types import NATIVE_TYPES
from finetune_operator.contract.refusals import TEXT_PART, Refusal, refusal
from finetune_operator.sizing.memory.activation_functions import ACTIVATIONS, FUSED, Activation
from finetune_operator.sizing.memory.config_reader import (
    ConfigReader,
    FamilyUnknownError,
    ShapeUnknownError,
    unexpected,
)
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.family import Attention, Family, Mlp, Norm, NormPlaces, QkNorm, Rope
from finetune_operator.sizing.memory.layer_kinds import layer_kinds

__all__ = [
    "FamilyUnknownError",
    "Linear",
    "ModelRefusedError",
    "ModelShape",
    "ShapeUnknownError",
    "model_shape",
]


_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class ModelRefusedError(ShapeUnknownError):
    """The trainer refuses the model. The message is that of the refusal."""

    def __init__(self, refused: Refusal) -> None:
        super().__init__(refused.message)
        self.rule = refused.rule


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
class Dropouts:
    """Places where a model in training drops values of its own, whatever the adapter's dropout."""

    scores: bool = False
    attention: bool = False
    mlp: bool = False
    embedding: bool = False


NO_DROPOUTS = Dropouts()


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder; sizes are elements, not bytes.

    `linears` are the matrices of one layer with attention. `vectors` are the elements of that layer's norms and of other
    small parameters; biases belong to their matrices. `convolution_layers` of the layers have a short convolution in
    place of attention, with `convolution_linears` and `convolution_vectors`. `final_vectors` is the last norm, with the
    bias of the output head if it has one. `softcap` is true if attention scores are capped, which no fused kernel does,
    and `final_softcap` if logits are. `sliding_window` is in tokens and applies to `sliding_layers` of the layers; it is
    None if every layer sees all tokens. `parallel_norms` counts the norms before parallel blocks. `clips` is true if
    queries, keys and values are clipped. `last_unpacked` is true if the last matrix of the last layer stays in 16 bits,
    because transformers never quantizes a model's last module. The other fields are as in `families.Family`.
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
    scaled_residual: bool = False
    activation: Activation = FUSED
    dropouts: Dropouts = NO_DROPOUTS
    clips: bool = False
    convolution_layers: int = 0
    convolution_linears: tuple[Linear, ...] = ()
    convolution_vectors: int = 0
    last_unpacked: bool = False

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.key_value_heads * self.head_dim

    @property
    def attention_layers(self) -> int:
        """Number of layers with attention."""
        return self.layers - self.convolution_layers

    @property
    def matrices(self) -> tuple[tuple[int, Linear], ...]:
        """Return the matrices that are quantized: the number of layers that have one, and the matrix."""
        counted = [(self.attention_layers, linear) for linear in self.linears]
        if self.last_unpacked:
            counted[-1] = (self.attention_layers - 1, self.linears[-1])
        if self.convolution_layers:
            counted += [(self.convolution_layers, linear) for linear in self.convolution_linears]
        return tuple((count, linear) for count, linear in counted if count)

    @property
    def linear_weights(self) -> int:
        """Elements of all layers' matrices that are quantized."""
        return sum(count * linear.weights for count, linear in self.matrices)

    @property
    def embedding_weights(self) -> int:
        """Elements of the embedding and, if it is not tied, of the output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def other_weights(self) -> int:
        """Elements of norms, biases and other parameters that are not quantized."""
        return (
            self.attention_layers * (self.vectors + _biases(self.linears))
            + self.convolution_layers * (self.convolution_vectors + _biases(self.convolution_linears))
            + self.final_vectors
            + (self.linears[-1].weights if self.last_unpacked else 0)
        )

    @property
    def parameters(self) -> int:
        """Elements of the whole model."""
        return self.linear_weights + self.embedding_weights + self.other_weights


@dataclass(frozen=True)
class Width:
    """What the learning rate depends on, of a model of any family."""

    family: str
    hidden: int


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape from a config.json. Of a model that also sees or hears, it is that of the text part.

    Raises ModelRefusedError for a model that the trainer refuses, FamilyUnknownError for one that no formula knows, and
    ShapeUnknownError for a member that is not a sensible number.
    """
    name = config.get("model_type")
    native = isinstance(name, str) and name in NATIVE_TYPES
    refused = refusal(config, known=native)
    if refused is not None:
        raise ModelRefusedError(refused)
    config = _text_part(config)
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or family is None:
        unknown = FamilyUnknownError if native else ShapeUnknownError
        raise unknown(
            f"model_type must be a supported family ({', '.join(sorted(FAMILIES))}), found {name!r:.80}"
        )
    _check_architecture(config.get("architectures"), name, family)
    reader = ConfigReader(config, family)
    _check_experts(reader)
    heads = reader.number("num_attention_heads")
    hidden = reader.number("hidden_size")
    head_dim = reader.number("head_dim", max(1, hidden // heads))
    key_value_heads = reader.number("num_key_value_heads", heads)
    intermediate = _intermediate(reader, family)
    layers = reader.number("num_hidden_layers")
    kinds = layer_kinds(reader, family, layers)
    parallel = family.norm_places == "Parallel" and reader.decided(family.parallel)
    norms = (family.parallel_norms if parallel else family.norms) * hidden * (1 + family.norm_bias)
    qk_norm: QkNorm = family.qk_norm if reader.decided(family.qk_normed) else "None"
    activation = _activation(reader, family)
    tied = reader.flag("tie_word_embeddings")
    mlp = _mlp(family, reader, hidden, intermediate)
    vocabulary = reader.number("vocab_size")
    final_norm = hidden * (1 + family.norm_bias) if family.final_norm else 0
    return ModelShape(
        family=name,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        vocabulary=vocabulary,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        tied=tied,
        linears=(*_attention(family, reader, hidden, heads * head_dim, key_value_heads * head_dim), *mlp),
        vectors=norms
        + _qk_vectors(qk_norm, heads, key_value_heads, head_dim) * (1 + family.qk_bias)
        + activation.parameters,
        final_vectors=final_norm + (vocabulary if family.head_bias else 0),
        gated=family.mlp in {"Gated", "FusedGated"},
        softcap=reader.value("attn_logit_softcapping") is not None,
        sliding_window=reader.optional("sliding_window") if kinds.sliding else None,
        sliding_layers=kinds.sliding,
        final_softcap=reader.value("final_logit_softcapping") is not None,
        attention=family.attention,
        mlp=family.mlp,
        norm=family.norm,
        norm_places="Pre" if family.norm_places == "Parallel" and not parallel else family.norm_places,
        parallel_norms=family.parallel_norms,
        qk_norm=qk_norm,
        rope=family.rope,
        scaled_residual=family.scaled_residual,
        activation=activation,
        dropouts=_dropouts(reader, family),
        clips=reader.value("clip_qkv") is not None,
        convolution_layers=kinds.convolution,
        convolution_linears=(*_convolution(reader, hidden), *mlp) if family.convolutions else (),
        convolution_vectors=norms + _kernels(reader, hidden) if family.convolutions else 0,
        last_unpacked=tied and not family.final_norm,
    )


def _check_architecture(declared: Any, name: str, family: Family) -> None:
    """Raise ModelRefusedError unless the config declares the class that transformers builds for its type."""
    if not isinstance(declared, list) or not declared:
        return
    expected = family.architecture or f"{name}ForCausalLM"
    names = [str(one) for one in declared]
    if _plain(expected) not in map(_plain, names):
        raise ModelRefusedError(
            Refusal("NoCausalHead", f"architecture {', '.join(names)[:200]} in a model of type {name}")
        )


def _check_experts(reader: ConfigReader) -> None:
    """Raise FamilyUnknownError if the model has experts, by its config or by its family's default."""
    for name in _EXPERT_COUNTS:
        experts = reader.value(name)
        if type(experts) is int and experts > 1:
            raise FamilyUnknownError(
                f"config.json's {name} must be 1 or absent for a formula, found {experts}"
            )


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _intermediate(reader: ConfigReader, family: Family) -> int:
    """Return the width of the second block; LFM2 rounds two thirds of the member's value up."""
    width = reader.number(family.inner)
    if not family.convolutions or not reader.flag("block_auto_adjust_ff_dim"):
        return width
    factor = reader.real("block_ffn_dim_multiplier") or 0
    multiple = reader.number("block_multiple_of")
    rounded = -(-int(factor * int(2 * width / 3)) // multiple) * multiple
    if rounded <= 0:
        raise unexpected("block_ffn_dim_multiplier", "a number above 0", factor)
    return rounded


def _attention(
    family: Family, reader: ConfigReader, hidden: int, query: int, key_value: int
) -> tuple[Linear, ...]:
    bias, output_bias = reader.decided(family.qkv_bias), reader.decided(family.output_bias)
    *into, out = family.attention_names
    widths = (query + 2 * key_value,) if family.attention == "FusedQkv" else (query, key_value, key_value)
    return (
        *(
            Linear(name, hidden, width, bias, in_attention=True)
            for name, width in zip(into, widths, strict=True)
        ),
        Linear(out, query, hidden, output_bias, in_attention=True),
    )


def _mlp(family: Family, reader: ConfigReader, hidden: int, intermediate: int) -> tuple[Linear, ...]:
    bias = reader.decided(family.mlp_bias)
    *into, out = family.mlp_names
    width = 2 * intermediate if family.mlp == "FusedGated" else intermediate
    return (*(Linear(name, hidden, width, bias) for name in into), Linear(out, intermediate, hidden, bias))


def _convolution(reader: ConfigReader, hidden: int) -> tuple[Linear, ...]:
    """Return the matrices before and after a short convolution (LFM2); no name of them contains `attention`."""
    bias = reader.flag("conv_bias")
    return Linear("in_proj", hidden, 3 * hidden, bias), Linear("out_proj", hidden, hidden, bias)


def _kernels(reader: ConfigReader, hidden: int) -> int:
    """Return the parameters of a convolution with one kernel for each channel."""
    return hidden * (reader.number("conv_L_cache") + reader.flag("conv_bias"))


def _qk_vectors(kind: QkNorm, heads: int, key_value_heads: int, head_dim: int) -> int:
    if kind == "PerHead":
        return 2 * head_dim
    if kind == "FullWidth":
        return (heads + key_value_heads) * head_dim
    return 0


def _activation(reader: ConfigReader, family: Family) -> Activation:
    member, default = family.activation
    name = reader.text(member, default) if member else default
    if name not in ACTIVATIONS:
        raise unexpected(member, f"one of {', '.join(sorted(ACTIVATIONS))}", name)
    return ACTIVATIONS[name]


def _dropouts(reader: ConfigReader, family: Family) -> Dropouts:
    attention, mlp, embedding = (
        member is not None and bool(reader.real(member)) for member in family.dropouts
    )
    return Dropouts(bool(reader.real("attention_dropout")), attention, mlp, embedding)


def _biases(linears: tuple[Linear, ...]) -> int:
    return sum(linear.outputs for linear in linears if linear.bias)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the text part, or the config itself if it has none."""
    part = config.get(TEXT_PART)
    if not isinstance(part, Mapping) or not part:
        return config
    # The class of the part does not matter, and the whole model ties its matrices, or not.
    tie = "tie_word_embeddings"
    whole = {"architectures": None} | ({tie: config[tie]} if config.get(tie) is not None else {})
    return {**part, **whole}


def width_of(config: Mapping[str, Any]) -> Width | None:
    """Return the width that any config.json tells; None without a plausible one."""
    nested = config.get(TEXT_PART)
    sizes = (part.get("hidden_size") for part in (config, nested) if isinstance(part, Mapping))
    hidden = next((size for size in sizes if type(size) is int and size > 0), None)
    return None if hidden is None else Width(str(config.get("model_type")), hidden)
