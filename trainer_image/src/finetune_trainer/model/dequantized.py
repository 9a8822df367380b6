"""Linear layers with the values of 4-bit ones in the type of the activations, for devices with room for them.

A product then need not unpack its matrix first. Its values are those that unpacking gives, so results differ by the
rounding of sums at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
from torch.nn import functional

from finetune_trainer.model.load import quantized_modules

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState


_BLOCKS_AT_ONCE = 1 << 16
"""Blocks of 64 values whose copies in float32 exist at one time: 16 MiB each."""


class DequantizedLinear(torch.nn.Linear):
    """A linear layer with the values of a 4-bit one. It keeps the constants of the quantization.

    `weight` is in the type of the activations. While `exact` is set, products take the values of `exact_values`.
    """

    def __init__(self, packed: Any, values: torch.Tensor | None = None) -> None:
        """Take the layer `packed`, and its `values` if they are known."""
        super().__init__(packed.in_features, packed.out_features, bias=False, device="meta")
        self.constants: QuantState = packed.weight.quant_state
        self.exact = False
        if values is None:
            values = dequantize_4bit(packed.weight.data, self.constants)
        self.weight = torch.nn.Parameter(values, requires_grad=False)
        self.bias = packed.bias

    @property
    def values(self) -> torch.Tensor:
        """The matrix of a product, (out, in)."""
        return self.exact_values() if self.exact else self.weight

    def exact_values(self) -> torch.Tensor:
        """Return the values of the 4-bit layer in float32: (out, in), as it unpacks them for products in float32.

        `weight` may have them rounded to 16 bits. Such a rounding never reaches the next value of the code, so the
        nearest one is the value before it.
        """
        state = self.constants
        scales = (
            dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        )
        code = state.code.to(torch.float32)
        found = torch.empty(self.weight.numel(), dtype=torch.float32, device=self.weight.device)
        flat = self.weight.flatten()
        # The values between which the nearest one changes.
        borders = (code[1:] + code[:-1]) / 2
        step = state.blocksize * _BLOCKS_AT_ONCE
        for first in range(0, flat.numel(), step):
            part = flat[first : first + step]
            scale = scales[first // state.blocksize :][: -(-part.numel() // state.blocksize)]
            scale = scale.repeat_interleave(state.blocksize)[: part.numel()]
            # A block of zeros has the scale 0.
            nearest = torch.bucketize(torch.where(scale == 0, 0, part.float() / scale), borders)
            found[first : first + step] = code[nearest] * scale
        return found.view_as(self.weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- the base class's name
        """Map (..., in) to (..., out), in the type of `input`."""
        return functional.linear(input, self.values, self.bias)


def dequantize_weights(model: Any) -> None:
    """Replace each 4-bit module of a loaded `model` by a `DequantizedLinear` of the same name.

    One module after another is unpacked and freed, so no more than one has its values twice.
    """
    # The modules themselves must not be kept.
    for name in list(quantized_modules(model)):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, DequantizedLinear(model.get_submodule(name)))


def dequantized_modules(model: Any) -> dict[str, DequantizedLinear]:
    """Return the modules of `model` that `dequantize_weights` made, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DequantizedLinear)}
