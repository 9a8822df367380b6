"""Runs the short convolution of a layer on a meter (LFM2): out(C * conv(B * x)), with B, C and x from one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.meter import Kind
from finetune_operator.sizing.memory.operations import matrix_backward, matrix_forward

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.layer_sizes import LayerSizes
    from finetune_operator.sizing.memory.meter import Meter


def convolution_forward(meter: Meter, layer: LayerSizes, *, saving: bool) -> None:
    """Run the block forward. The caller owns the input, and the output stays allocated."""
    hidden = layer.hidden
    (into,) = layer.attention_in
    matrix_forward(meter, into, saving=saving)
    # B, C and x are views of the matrix's result. Their product, and the convolution's result.
    kept = 3 * hidden + 2 * hidden
    meter.alloc(hidden)
    meter.alloc(hidden)
    if saving:
        meter.save(kept)
    meter.alloc(hidden)
    matrix_forward(meter, layer.attention_out, saving=saving)
    if saving and layer.attention_out.saves_input:
        meter.save(hidden)
    else:
        meter.free(hidden)
    if not saving:
        meter.free(kept)


def convolution_backward(meter: Meter, layer: LayerSizes, *, released: int, keep: bool) -> None:
    """Replace the allocated gradient of the output by that of the input."""
    hidden = layer.hidden
    matrix_backward(
        meter, layer.attention_out, released=hidden if layer.attention_out.saves_input else 0, keep=keep
    )
    # The gradients of C and of the convolution's result.
    meter.alloc(2 * hidden)
    meter.free(hidden)
    meter.free(hidden, Kind.SAVED)
    # The convolution's gradient, through the cut of its padding.
    meter.alloc(hidden)
    meter.alloc(hidden)
    meter.free(2 * hidden)
    meter.free(hidden, Kind.SAVED)
    # The gradients of B and x, which are joined with that of C.
    meter.alloc(2 * hidden)
    meter.free(hidden)
    meter.free(3 * hidden, Kind.SAVED)
    meter.alloc(3 * hidden)
    meter.free(3 * hidden)
    (into,) = layer.attention_in
    matrix_backward(meter, into, released=released)
