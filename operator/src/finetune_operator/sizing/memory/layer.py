"""Runs one decoder layer on a meter, forward and backward, operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.attention import attention_backward, attention_forward
from finetune_operator.sizing.memory.convolution import convolution_backward, convolution_forward
from finetune_operator.sizing.memory.meter import Kind
from finetune_operator.sizing.memory.operations import (
    matrix_backward,
    matrix_forward,
    norm_backward,
    norm_forward,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_operator.sizing.memory.layer_sizes import LayerSizes
    from finetune_operator.sizing.memory.meter import Meter


def layer_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    """Run a layer forward; its output stays allocated, and with `saving` so do the tensors for its backward pass.

    The caller owns the input.
    """
    if layer.shape.norm_places == "Parallel":
        _parallel_forward(meter, layer, saving=saving)
        return
    for number, block in enumerate((_mixer_forward, _mlp_forward)):
        _block_forward(meter, layer, block, first=number == 0, saving=saving)


def layer_backward(meter: Meter, layer: LayerSizes) -> None:
    """Replace the allocated gradient of the output by that of the input, and free all saved tensors."""
    if layer.shape.norm_places == "Parallel":
        _parallel_backward(meter, layer)
        return
    _block_backward(meter, layer, _mlp_backward, first=False)
    _block_backward(meter, layer, _mixer_backward, first=True)


def _mixer_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    """Run attention, or the convolution in its place."""
    forward = convolution_forward if layer.convolution else attention_forward
    forward(meter, layer, saving=saving)


def _mixer_backward(meter: Meter, layer: LayerSizes, *, released: int, keep: bool) -> None:
    backward = convolution_backward if layer.convolution else attention_backward
    backward(meter, layer, released=released, keep=keep)


def _block_forward(
    meter: Meter, layer: LayerSizes, block: Callable[..., None], *, first: bool, saving: bool
) -> None:
    """Run norm(block(norm(x))) + x. The first block's input is the layer's; the second one's is allocated here."""
    places, hidden = layer.shape.norm_places, layer.hidden
    saves = layer.attention_saves_input if first else layer.mlp_saves_input
    if places != "Post":
        norm_forward(meter, layer.norm, saving=saving)
    block(meter, layer, saving=saving)
    _drop(meter, layer, first=first, saving=saving)
    if places != "Pre":
        # A norm that copies nothing saves the block's result.
        norm_forward(meter, layer.norm, saving=saving)
        _end(meter, hidden, saved=saving and not layer.norm.copies)
    if places != "Post":
        meter.alloc(hidden)
        meter.free(hidden)
        _end(meter, hidden, saved=saving and saves)
        input_saved = not layer.norm.copies
    else:
        meter.alloc(hidden)
        meter.free(hidden)
        input_saved = saves
    if not first:
        _end(meter, hidden, saved=saving and input_saved)
    elif saving and input_saved and layer.owns_input:
        meter.alloc(hidden, Kind.SAVED)


def _drop(meter: Meter, layer: LayerSizes, *, first: bool, saving: bool) -> None:
    """Replace a block's result by that of its dropout, which saves a mask."""
    if layer.drops(first=first):
        meter.alloc(layer.mask)
        meter.transient(layer.hidden)
        _end(meter, layer.mask, saved=saving)


def _drop_backward(meter: Meter, layer: LayerSizes, *, first: bool) -> bool:
    """Allocate the gradient before a block's dropout; return whether the block has one."""
    if not layer.drops(first=first):
        return False
    meter.alloc(layer.hidden)
    meter.free(layer.mask, Kind.SAVED)
    return True


def _end(meter: Meter, size: int, *, saved: bool) -> None:
    """Free an allocated tensor, or save it for the backward pass."""
    if saved:
        meter.save(size)
    else:
        meter.free(size)


def _block_backward(meter: Meter, layer: LayerSizes, block: Callable[..., None], *, first: bool) -> None:
    places, hidden = layer.shape.norm_places, layer.hidden
    own = layer.owns_input or not first
    if places != "Pre":
        norm_backward(meter, layer.norm, keep=True)
    saves = layer.attention_saves_input if first else layer.mlp_saves_input
    released = hidden if saves and (places != "Post" or own) else 0
    keep = places == "Pre"
    if layer.shape.scaled_residual:
        # The block's gradient is a scaled copy of the residual's gradient.
        meter.alloc(hidden)
        keep = False
    if _drop_backward(meter, layer, first=first):
        if not keep:
            meter.free(hidden)
        keep = False
    block(meter, layer, released=released, keep=keep)
    if places != "Post":
        norm_backward(meter, layer.norm, release=layer.norm.copies or own)
    # The residual's gradient is added.
    meter.alloc(hidden)
    meter.free(2 * hidden)


def _mlp_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    inner, kind = layer.inner, layer.shape.mlp
    activation = layer.shape.activation
    matrix_forward(meter, layer.mlp_in[0], saving=saving)
    meter.alloc(activation.saved * inner // 2)
    meter.transient(activation.forward * inner // 2)
    _end(meter, activation.saved * inner // 2, saved=saving)
    meter.alloc(inner)
    if kind == "Gated":
        # The activation's input, then up, then the product of both.
        _end(meter, inner, saved=saving)
        matrix_forward(meter, layer.mlp_in[1], saving=saving)
        meter.alloc(inner)
        _end(meter, 2 * inner, saved=saving)
    elif kind == "FusedGated":
        meter.alloc(inner)
        _end(meter, inner, saved=saving)
        if saving:
            meter.save(2 * inner)
    else:
        _end(meter, inner, saved=saving)
    matrix_forward(meter, layer.mlp_out, saving=saving)
    if kind == "FusedGated" and not saving:
        meter.free(2 * inner)
    _end(meter, inner, saved=saving and layer.mlp_out.saves_input)


def _mlp_backward(meter: Meter, layer: LayerSizes, *, released: int, keep: bool) -> None:
    inner, kind = layer.inner, layer.shape.mlp
    matrix_backward(meter, layer.mlp_out, released=inner if layer.mlp_out.saves_input else 0, keep=keep)
    if kind in {"Gated", "FusedGated"}:
        # The product's two gradients.
        meter.alloc(2 * inner)
        meter.free(inner)
        meter.free(inner, Kind.SAVED)
    if kind == "Gated":
        meter.free(inner, Kind.SAVED)
        matrix_backward(meter, layer.mlp_in[1])
    activation = layer.shape.activation
    meter.transient(activation.backward * inner // 2)
    # The activation's gradient.
    meter.alloc(inner)
    meter.free(inner)
    meter.free(activation.saved * inner // 2, Kind.SAVED)
    if kind == "FusedGated":
        meter.alloc(2 * inner)
        meter.free(2 * inner)
        meter.free(2 * inner, Kind.SAVED)
    else:
        meter.free(inner, Kind.SAVED)
    matrix_backward(meter, layer.mlp_in[0], released=released, shared=kind == "Gated")


def _parallel_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    """Run attention(norm(x)) + mlp(norm(x)) + x, with one norm for both blocks or one for each."""
    hidden, norms = layer.hidden, layer.shape.parallel_norms
    for _ in range(norms):
        norm_forward(meter, layer.norm, saving=saving)
    attention_forward(meter, layer, saving=saving)
    _drop(meter, layer, first=True, saving=saving)
    _mlp_forward(meter, layer, saving=saving)
    _drop(meter, layer, first=False, saving=saving)
    meter.alloc(hidden)
    meter.free(2 * hidden)
    saved = layer.attention_saves_input + layer.mlp_saves_input if norms == 2 else layer.saves_normed
    for number in range(norms):
        _end(meter, hidden, saved=saving and number < saved)
    if saving and layer.owns_input and not layer.norm.copies:
        meter.alloc(hidden, Kind.SAVED)


def _parallel_backward(meter: Meter, layer: LayerSizes) -> None:
    hidden, norms = layer.hidden, layer.shape.parallel_norms
    two = norms == 2
    own = _drop_backward(meter, layer, first=False)
    _mlp_backward(meter, layer, released=hidden if two and layer.mlp_saves_input else 0, keep=not own)
    saves = layer.attention_saves_input if two else layer.saves_normed
    own = _drop_backward(meter, layer, first=True)
    attention_backward(meter, layer, released=hidden if saves else 0, keep=not own)
    if not two:
        meter.alloc(hidden)
        meter.free(2 * hidden)
    for number in range(norms):
        last = number == norms - 1
        norm_backward(meter, layer.norm, release=layer.norm.copies or (last and layer.owns_input))
        meter.alloc(hidden)
        meter.free(2 * hidden)
