"""Runs the attention block of a layer on a meter, forward and backward, operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.meter import Kind
from finetune_operator.sizing.memory.operations import (
    matrix_backward,
    matrix_forward,
    norm_backward,
    norm_forward,
)

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.layer_sizes import LayerSizes
    from finetune_operator.sizing.memory.meter import Meter

_WIDE = 4
"""Bytes of a float32."""


def attention_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    """Run the block forward. The caller owns the input, and the output stays allocated."""
    query, key_value = layer.query, layer.key_value
    for matrix in layer.attention_in:
        matrix_forward(meter, matrix, saving=saving)
    if saving:
        meter.alloc(layer.clipped, Kind.SAVED)
    if layer.shape.qk_norm != "None":
        norm_forward(meter, layer.query_norm, saving=saving)
        norm_forward(meter, layer.key_norm, saving=saving)
        # A norm that copies nothing saves its input.
        _end(meter, query + key_value, saved=saving and not layer.query_norm.copies)
    # Rotary positions: x * cos + rotated(x) * sin; unrotated queries and keys live until both are done.
    for part in (query, key_value):
        meter.alloc(part)
        meter.transient(2 * part * layer.rope_widening)
    if layer.shape.attention != "FusedQkv":
        meter.free(query + key_value)
    _kernel_forward(meter, layer)
    kept = layer.attention_held
    if saving:
        meter.save(kept)
    matrix_forward(meter, layer.attention_out, saving=saving)
    if layer.copies_attention:
        _end(meter, query, saved=saving and layer.attention_out.saves_input)
    if not saving:
        meter.free(kept)
        if layer.eager:
            meter.free(layer.saved_scores, Kind.SCORES)


def _end(meter: Meter, size: int, *, saved: bool) -> None:
    if saved:
        meter.save(size)
    else:
        meter.free(size)


def _kernel_forward(meter: Meter, layer: LayerSizes) -> None:
    """Leave `attention_held` allocated, and the copy of the result if there is one."""
    query, key_value, score = layer.query, layer.key_value, layer.score
    fused = query + 2 * key_value if layer.shape.attention == "FusedQkv" else 0
    if layer.repeats:
        meter.alloc(2 * query)
        meter.free((key_value + fused) if fused else 2 * key_value)
    if layer.eager:
        # Scores are scaled, capped and masked; then widened, their softmax taken, and the result narrowed.
        meter.alloc(2 * score, Kind.SCORES)
        meter.transient(2 * score, Kind.SCORES)
        if layer.shape.softcap:
            meter.transient(2 * score, Kind.SCORES)
            meter.alloc(2 * score, Kind.SCORES)
        meter.alloc(2 * _WIDE * score, Kind.SCORES)
        meter.free(_WIDE * score + 2 * score, Kind.SCORES)
        meter.alloc(2 * score, Kind.SCORES)
        if layer.shape.dropouts.scores:
            # The dropped scores replace the others, and their mask is saved.
            meter.transient(2 * score, Kind.SCORES)
            meter.alloc(score, Kind.SCORES)
        meter.alloc(query)
        meter.alloc(query)
        meter.free(query)
        return
    meter.alloc(query + layer.sums + (layer.bias if layer.masked else 0))
    if layer.copies_attention:
        meter.alloc(query)


def attention_backward(meter: Meter, layer: LayerSizes, *, released: int, keep: bool) -> None:
    """Replace the allocated gradient of the output by that of the input."""
    query, key_value, fused = layer.query, layer.key_value, layer.shape.attention != "Separate"
    copy = query if layer.copies_attention and layer.attention_out.saves_input else 0
    matrix_backward(meter, layer.attention_out, released=copy, keep=keep)
    if layer.eager:
        _eager_backward(meter, layer)
    else:
        parts = query + 2 * (query if layer.repeats else key_value)
        meter.alloc(parts)
        # The kernel sums the gradient of queries in float32, and those of keys and values for each query head.
        meter.workspace(layer.query * _WIDE // layer.width + (0 if layer.repeats else 2 * layer.query))
        meter.free(layer.attention_held, Kind.SAVED)
        meter.free(query)
    if layer.repeats:
        meter.alloc(2 * key_value)
        meter.free(2 * query)
    for part in (query, key_value):
        meter.transient(3 * part * layer.rope_widening)
    if layer.shape.qk_norm != "None":
        norm_backward(meter, layer.key_norm)
        norm_backward(meter, layer.query_norm)
    if layer.clipped:
        meter.transient(query)
        meter.free(layer.clipped, Kind.SAVED)
    if fused:
        whole = query + 2 * key_value
        meter.alloc(whole)
        meter.transient(2 * whole)
        meter.free(whole)
        matrix_backward(meter, layer.attention_in[0], released=released)
        return
    *others, last = reversed(layer.attention_in)
    for number, matrix in enumerate(others):
        matrix_backward(meter, matrix, shared=number > 0)
    matrix_backward(meter, last, released=released, shared=True)


def _eager_backward(meter: Meter, layer: LayerSizes) -> None:
    query, score = layer.query, layer.score
    # Gradients of: the product with the values, the softmax in float32, the cap, the product of queries and keys.
    meter.alloc(2 * score, Kind.SCORES)
    meter.alloc(query)
    meter.free(query)
    meter.free(2 * score, Kind.SCORES)
    if layer.shape.dropouts.scores:
        meter.transient(2 * score, Kind.SCORES)
        meter.free(score, Kind.SCORES)
    meter.alloc(_WIDE * score, Kind.SCORES)
    meter.free(2 * score, Kind.SCORES)
    meter.alloc(_WIDE * score, Kind.SCORES)
    meter.free(2 * _WIDE * score, Kind.SCORES)
    meter.alloc(2 * score, Kind.SCORES)
    meter.free(_WIDE * score, Kind.SCORES)
    if layer.shape.softcap:
        meter.transient(2 * score, Kind.SCORES)
        meter.free(2 * score, Kind.SCORES)
    meter.transient(2 * score, Kind.SCORES)
    meter.alloc(2 * query)
    meter.free(2 * score, Kind.SCORES)
    meter.free(layer.attention_held, Kind.SAVED)
