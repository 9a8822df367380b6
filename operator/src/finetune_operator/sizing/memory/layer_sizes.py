"""Sizes of a decoder layer's tensors for one micro-batch, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.adapters import is_adapted
from finetune_operator.sizing.memory.operations import Matrix, NormSizes
from finetune_operator.sizing.memory.terms import allocated
from finetune_operator.sizing.memory.weights import constants_bytes, unpacked_bytes

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.shape import Linear, ModelShape
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

_WIDE = 4
"""Bytes of a float32."""
_BF16 = 2
_NORM_ELEMENTS = 1 << 22
"""Elements of a matrix whose norms are computed at a time."""


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a layer in bytes, for the meter.

    `hidden`, `query`, `key_value` and `inner` are one tensor of that width in the model's type, whose elements have
    `width` bytes. `score` is one byte for each pair of positions and head. `bias` is a mask in the model's type. `sums`
    are the logarithms of softmax sums that a fused kernel saves. `owns_input` is true if no checkpoint keeps the
    layer's input. `mask` is one byte for each element of the hidden states, as dropout saves it.

    In a layer with a `convolution`, `attention_in` and `attention_out` are the matrices around it.
    """

    shape: ModelShape
    convolution: bool
    eager: bool
    masked: bool
    owns_input: bool
    width: int
    hidden: int
    mask: int
    query: int
    key_value: int
    inner: int
    score: int
    bias: int
    sums: int
    rope_widening: int
    attention_in: tuple[Matrix, ...]
    attention_out: Matrix
    mlp_in: tuple[Matrix, ...]
    mlp_out: Matrix
    norm: NormSizes
    query_norm: NormSizes
    key_norm: NormSizes

    @property
    def attention_saves_input(self) -> bool:
        """True if an adapter of the attention block saves the block's input."""
        return any(matrix.saves_input for matrix in self.attention_in)

    @property
    def mlp_saves_input(self) -> bool:
        """True if an adapter of the second block saves the block's input."""
        return any(matrix.saves_input for matrix in self.mlp_in)

    def drops(self, *, first: bool) -> bool:
        """Return whether the first or the second block ends with a dropout of the model's own."""
        return self.shape.dropouts.attention if first else self.shape.dropouts.mlp

    @property
    def repeats(self) -> bool:
        """True if keys and values are repeated for each query head; the flash kernel takes them unrepeated."""
        return self.shape.heads != self.shape.key_value_heads and (self.eager or self.masked)

    @property
    def copies_attention(self) -> bool:
        """True if the output matrix reads a reordered copy of the attention's result."""
        return self.eager or (self.shape.rope == "Joined" and not self.masked)

    @property
    def attention_held(self) -> int:
        """Bytes that attention saves without scores: queries, keys, values, result, sums, bias."""
        if self.repeats:
            keys_and_values = 2 * self.query
        elif self.shape.attention == "FusedQkv":
            # Values are a view of the fused result, which lives as long as they do.
            keys_and_values = self.key_value + self.query + 2 * self.key_value
        else:
            keys_and_values = 2 * self.key_value
        if self.eager:
            return self.query + keys_and_values
        return 2 * self.query + keys_and_values + self.sums + (self.bias if self.masked else 0)

    @property
    def saves_normed(self) -> bool:
        """True if an adapter saves the input that parallel blocks share."""
        return self.attention_saves_input or self.mlp_saves_input

    @property
    def saved_scores(self) -> int:
        """Bytes of scores that eager attention saves: the softmax in 32 and in 16 bits, capped scores, a dropout mask."""
        return (6 + 2 * self.shape.softcap + self.shape.dropouts.scores) * self.score

    @property
    def clipped(self) -> int:
        """Bytes of copies of queries, keys and values that clipping them in place saves."""
        return self.query + 2 * self.key_value if self.shape.clips else 0


def layer_sizes(
    shape: ModelShape, plan: TrainingPlan, stack: StackProfile, *, windowed: bool, convolution: bool = False
) -> LayerSizes:
    """Return the sizes of a layer.

    `windowed` is true for a layer with a sliding window, `convolution` for one with a short convolution.
    """
    tokens, width = plan.tokens, stack.residual_width
    pairs = plan.micro_batch_size * plan.sequence_length**2
    eager = is_eager(shape, stack)
    wide_heads = shape.head_dim > _WIDEST_FLASH_HEAD
    masked = not eager and (
        stack.attention == "SdpaMasked"
        or wide_heads
        or (windowed and stack.attention != "Flash" and beyond_window(shape, plan))
    )
    linears = shape.convolution_linears if convolution else shape.linears
    matrices = [_matrix(linear, plan, stack, adapted=is_adapted(linear, plan)) for linear in linears]
    count = len(linears) - (2 if shape.mlp != "Gated" else 3)
    *attention_in, attention_out = matrices[:count]
    *mlp_in, mlp_out = matrices[count:]

    def norm(elements: int) -> NormSizes:
        # A centered norm always subtracts the mean from a copy.
        copies = (width != _WIDE and shape.norm != "Layer") or shape.norm == "Centered"
        return NormSizes(shape.norm, width * elements * tokens, _WIDE * elements * tokens, copies)

    return LayerSizes(
        shape=shape,
        convolution=convolution,
        eager=eager,
        masked=masked,
        owns_input=not plan.gradient_checkpointing,
        width=width,
        hidden=width * shape.hidden * tokens,
        mask=shape.hidden * tokens,
        query=width * shape.query_width * tokens,
        key_value=width * shape.key_value_width * tokens,
        inner=width * shape.intermediate * tokens,
        score=pairs * shape.heads * width // _BF16,
        bias=width * pairs,
        sums=_WIDE * shape.heads * tokens,
        rope_widening=_WIDE // width if shape.rope == "Float" else 1,
        attention_in=tuple(attention_in),
        attention_out=attention_out,
        mlp_in=tuple(mlp_in),
        mlp_out=mlp_out,
        norm=norm(shape.hidden),
        query_norm=norm(shape.query_width),
        key_norm=norm(shape.key_value_width),
    )


_WIDEST_FLASH_HEAD = 256
"""Elements; torch's flash kernels support no wider heads."""


def is_eager(shape: ModelShape, stack: StackProfile) -> bool:
    """Return whether attention scores are separate tensors. Capped scores always are: no fused kernel caps them."""
    return stack.attention == "Eager" or (shape.softcap and stack.attention != "Flash")


def beyond_window(shape: ModelShape, plan: TrainingPlan) -> bool:
    """Return whether rows are longer than the sliding window, so that attention needs a mask."""
    return shape.sliding_window is not None and plan.sequence_length >= shape.sliding_window


def _matrix(linear: Linear, plan: TrainingPlan, stack: StackProfile, *, adapted: bool) -> Matrix:
    tokens, width = plan.tokens, stack.residual_width
    narrower = stack.product_width != width
    inputs = width * linear.inputs * tokens
    product = stack.product_width * linear.inputs * tokens
    # Dropout saves a byte for each element, and its result is what the adapter saves.
    dropped = linear.inputs * tokens + (0 if narrower else inputs) if plan.dropout and adapted else 0
    unpacked = unpacked_bytes(linear.weights, stack)

    def factor(elements: int) -> int:
        cast = adapted and stack.adapter_width != stack.product_width
        return allocated(stack.product_width * plan.rank * elements) if cast else 0

    return Matrix(
        inputs=inputs,
        outputs=width * linear.outputs * tokens,
        adapted=adapted,
        low_rank=stack.product_width * plan.rank * tokens,
        copy=product if narrower else 0,
        dropped=dropped,
        unpacked=unpacked,
        constants=constants_bytes(linear.weights, stack),
        unpacked_forward=bool(unpacked) and tokens > stack.fused_product_tokens,
        factor_in=factor(linear.inputs),
        factor_out=factor(linear.outputs),
        magnitudes=dora_bytes(linear) if plan.variant == "DoRA" and adapted else 0,
        packed_saves_input=bool(unpacked) and stack.saves_matrix_inputs,
    )


def dora_bytes(linear: Linear) -> int:
    """Return the bytes that the trainer allocates to compute the norm of an adapted matrix (master_weights.py).

    The unpacked matrix in 16 bits, and its sum with the update in float32, in blocks of rows.
    """
    return _BF16 * linear.weights + _WIDE * min(linear.weights, _NORM_ELEMENTS)
