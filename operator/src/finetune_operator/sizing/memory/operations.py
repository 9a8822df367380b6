"""Runs single operations of a layer on a meter, forward and backward, in torch's order.

Derived from the code of transformers, peft's bnb.Linear4bit and bitsandbytes, and from the tensors that autograd saves
for each operation. Two gradients of one tensor are added out of place, as torch does if either is used elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.meter import Kind

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.family import Norm
    from finetune_operator.sizing.memory.meter import Meter


@dataclass(frozen=True)
class Matrix:
    """One matrix of a layer as it is used: bytes of its input, output, and what its adapter needs.

    `copy` is the input in the adapter's type, 0 where that is the input's own; `dropped` is the input after dropout
    and its mask, 0 without dropout; `low_rank` is the adapter's inner result. `unpacked` is the matrix in 16 bits,
    `constants` its block constants in float32; `unpacked_forward` says that the forward pass unpacks it too.
    """

    inputs: int
    outputs: int
    adapted: bool
    low_rank: int
    copy: int
    dropped: int
    unpacked: int
    constants: int
    unpacked_forward: bool
    factor_in: int = 0
    """Bytes of the adapter's first factor (rank x inputs) in the type of its product; 0 if that is its own type."""
    factor_out: int = 0
    """The same for its second factor (outputs x rank)."""
    magnitudes: int = 0
    """Bytes that DoRA allocates to compute the norm of the adapted matrix."""
    packed_saves_input: bool = False
    """True if the product with the packed matrix saves its input too, although a frozen matrix does not need it."""

    @property
    def saves_input(self) -> bool:
        """True if the input tensor itself is saved, not a copy."""
        return self.packed_saves_input or (self.adapted and not self.copy and not self.dropped)

    @property
    def saved(self) -> int:
        """Bytes that the adapter saves in addition to its input."""
        if not self.adapted:
            return 0
        return self.copy + self.dropped + self.low_rank + self.factor_in + self.factor_out + self.weighted

    @property
    def weighted(self) -> int:
        """Bytes that DoRA saves: the result before its scaling by the magnitudes, and the matrix's own result."""
        return 2 * self.outputs if self.magnitudes else 0


def matrix_forward(meter: Meter, matrix: Matrix, *, saving: bool) -> None:
    """Allocate the output. The caller owns the input."""
    if matrix.unpacked_forward:
        meter.alloc(matrix.constants, Kind.UNPACKED)
        meter.transient(matrix.constants, Kind.UNPACKED)
        meter.alloc(matrix.unpacked, Kind.UNPACKED)
        meter.alloc(matrix.outputs)
        meter.free(matrix.constants + matrix.unpacked, Kind.UNPACKED)
    else:
        meter.alloc(matrix.outputs)
    if not matrix.adapted:
        return
    # result.clone(), then the adapter's product, scaled, then the sum of both.
    meter.transient(matrix.outputs)
    kept = matrix.copy + matrix.dropped + matrix.low_rank
    meter.alloc(kept)
    if saving:
        kept += matrix.factor_in + matrix.factor_out
        meter.alloc(matrix.factor_in + matrix.factor_out)
    else:
        meter.transient(max(matrix.factor_in, matrix.factor_out + matrix.outputs))
    if matrix.magnitudes:
        meter.transient(matrix.magnitudes, Kind.UNPACKED)
        # DoRA's magnitudes are float32, and so are three products before their sum is narrowed.
        meter.transient(6 * matrix.outputs)
    meter.transient(2 * matrix.outputs)
    if saving:
        meter.alloc(matrix.weighted)
        meter.save(kept + matrix.weighted)
    else:
        meter.free(kept)


def matrix_backward(
    meter: Meter, matrix: Matrix, *, released: int = 0, shared: bool = False, keep: bool = False
) -> None:
    """Replace the allocated gradient of the output by that of the input.

    `released` is the size of the saved input if this is its last use. With `shared`, a gradient of the same input is
    already allocated. With `keep`, the gradient of the output is used elsewhere too.
    """
    gradient = matrix.inputs
    if matrix.adapted:
        if matrix.magnitudes:
            # Four gradients in float32: of the sum, of the scaled product, and of both factors of a product.
            meter.transient(8 * matrix.outputs)
            meter.free(matrix.weighted, Kind.SAVED)
        # Scaled, then through B, then through A.
        meter.alloc(matrix.outputs)
        meter.alloc(matrix.low_rank)
        # The gradient of a factor's copy is as large as the copy.
        meter.transient(matrix.factor_out)
        meter.free(matrix.outputs)
        meter.free(matrix.low_rank + matrix.factor_out, Kind.SAVED)
        meter.alloc(gradient)
        meter.transient(matrix.factor_in)
        meter.free(matrix.factor_in, Kind.SAVED)
        meter.free(matrix.low_rank)
        meter.free(released + matrix.copy, Kind.SAVED)
        if matrix.dropped:
            meter.transient(gradient)
            meter.free(matrix.dropped, Kind.SAVED)
        _accumulate(meter, gradient, held=shared)
    elif released:
        meter.free(released, Kind.SAVED)
    meter.alloc(matrix.constants, Kind.UNPACKED)
    meter.alloc(matrix.unpacked, Kind.UNPACKED)
    meter.free(matrix.constants, Kind.UNPACKED)
    meter.alloc(gradient)
    meter.free(matrix.unpacked, Kind.UNPACKED)
    if not keep:
        meter.free(matrix.outputs)
    _accumulate(meter, gradient, held=shared or matrix.adapted)


def _accumulate(meter: Meter, size: int, *, held: bool) -> None:
    """Add a new gradient to the allocated one."""
    if held:
        meter.alloc(size)
        meter.free(2 * size)


@dataclass(frozen=True)
class NormSizes:
    """Bytes of a norm's input in the model's type and in float32; `copies` is true if the norm copies its input."""

    kind: Norm
    narrow: int
    wide: int
    copies: bool

    @property
    def saved(self) -> int:
        """Bytes that only the norm saves; a norm that copies nothing saves its input."""
        if self.kind == "Centered":
            return 2 * self.wide
        return self.wide if self.copies else self.narrow


def norm_forward(meter: Meter, norm: NormSizes, *, saving: bool) -> None:
    """Allocate the output. The caller owns the input, and saves it if the norm does."""
    if norm.kind == "Layer":
        meter.alloc(norm.narrow)
        return
    if norm.kind == "Centered":
        _centered_forward(meter, norm, saving=saving)
        return
    copy = norm.wide if norm.copies else 0
    meter.alloc(copy)
    meter.transient(norm.wide)
    meter.alloc(norm.wide)
    if norm.copies and not saving:
        meter.free(copy)
    if norm.kind == "RmsFloat":
        meter.alloc(norm.wide)
        meter.transient(norm.narrow)
        meter.free(2 * norm.wide)
    else:
        meter.transient(2 * norm.narrow)
        meter.free(norm.wide)
    meter.alloc(norm.narrow)
    if saving:
        meter.save(copy)


def norm_backward(meter: Meter, norm: NormSizes, *, release: bool = True, keep: bool = False) -> None:
    """Replace the allocated gradient of the output by that of the input.

    With `release`, the norm's saved tensor has no other user. With `keep`, the gradient is used elsewhere too.
    """
    saved = norm.saved if release else 0
    if norm.kind == "Layer":
        meter.alloc(norm.narrow)
        meter.free(saved, Kind.SAVED)
        if not keep:
            meter.free(norm.narrow)
        return
    given = 0 if keep else norm.narrow
    if norm.kind == "Centered":
        _centered_backward(meter, norm, given)
        return
    if norm.kind == "LayerFloat":
        meter.alloc(norm.wide)
        meter.free(given)
        meter.alloc(norm.wide)
        meter.free(saved, Kind.SAVED)
        meter.free(norm.wide)
    else:
        # Scale and widen; the product's two gradients; the mean's; the square's.
        meter.alloc(norm.wide)
        meter.transient(norm.wide if norm.kind == "RmsFloat" else norm.narrow)
        meter.free(given)
        meter.alloc(norm.wide)
        meter.transient(norm.wide)
        meter.free(norm.wide)
        meter.alloc(norm.wide)
        meter.transient(3 * norm.wide)
        meter.alloc(norm.wide)
        meter.free(norm.wide)
        meter.free(saved, Kind.SAVED)
        _accumulate(meter, norm.wide, held=True)
    if norm.copies:
        meter.alloc(norm.narrow)
        meter.free(norm.wide)


def _centered_forward(meter: Meter, norm: NormSizes, *, saving: bool) -> None:
    """Subtract the mean twice in float32: for the variance, and for the result. Both differences are saved."""
    meter.alloc(norm.wide)
    meter.alloc(norm.wide)
    meter.transient(norm.wide)
    if not saving:
        meter.free(norm.wide)
    meter.alloc(norm.wide)
    meter.alloc(norm.wide)
    # The float32 input and, without saving, the difference are free once the product replaces them.
    meter.free(norm.wide if saving else 2 * norm.wide)
    meter.alloc(norm.wide)
    meter.free(norm.wide)
    meter.alloc(norm.narrow)
    meter.free(norm.wide)
    if saving:
        meter.save(2 * norm.wide)


def _centered_backward(meter: Meter, norm: NormSizes, given: int) -> None:
    meter.alloc(norm.wide)
    meter.free(given)
    # The weight's product; the difference's two gradients; the mean's; the square's.
    meter.alloc(norm.wide)
    meter.free(norm.wide)
    meter.alloc(norm.wide)
    meter.transient(norm.wide)
    meter.free(norm.wide)
    meter.free(norm.wide, Kind.SAVED)
    meter.transient(norm.wide)
    meter.alloc(norm.wide)
    meter.transient(2 * norm.wide)
    meter.free(norm.wide, Kind.SAVED)
    meter.transient(norm.wide)
    meter.alloc(norm.wide)
    meter.free(2 * norm.wide)
    meter.alloc(norm.narrow)
    meter.free(norm.wide)
