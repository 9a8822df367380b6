"""A 4-bit linear layer whose scales are a parameter, so that FSDP2 shares them out with the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

# bitsandbytes is only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes
_Linear: Any = bnb.nn.Linear4bit


class ShardedLinear4bit(_Linear):  # type: ignore[misc]  # see above
    """An NF4 layer. `weight` (bytes, 1) and `absmax` (blocks, 1) are frozen parameters of bytes.

    bitsandbytes keeps `absmax` in a constant of the layer, which would be whole on every rank: 1 GiB of a model of 70 billion
    weights. What is left there takes 1/4,096 of the weights.
    """

    def __init__(self, layer: Any, constants: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Take the sizes and the bias of a linear `layer`, and compute in `dtype`. The weights have no memory yet.

        `constants` are the small tensors of the weight by their names in a checkpoint, without `absmax`.
        """
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
        self.bias = layer.bias
        nothing = torch.empty(0, dtype=torch.uint8)
        self.quant_state = bnb.functional.QuantState.from_dict(
            qs_dict={**constants, "absmax": nothing}, device=next(iter(constants.values())).device
        )
        self.quant_state.dtype = self.compute_dtype = dtype
        self.compute_type_is_set = True
        self.support_avx512bf16_for_cpu = False
        elements = self.in_features * self.out_features
        self.blocks = -(-elements // self.quant_state.blocksize)
        self.weight = bnb.nn.Params4bit(
            stand_in((-(-elements // 2), 1), torch.uint8),
            requires_grad=False,
            quant_state=self.quant_state,
            blocksize=self.quant_state.blocksize,
            compress_statistics=True,
            quant_type="nf4",
            bnb_quantized=True,
        )
        self.absmax = torch.nn.Parameter(stand_in((self.blocks, 1), torch.uint8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out), in the type of `x`."""
        # The backward pass unpacks with the same object. FSDP2 gathers into the memory to which it refers.
        self.quant_state.absmax = self.absmax.view(-1)
        found: torch.Tensor = bnb.matmul_4bit(
            x.to(self.compute_dtype), self.weight, bias=self.bias, quant_state=self.quant_state
        )
        return found.to(x.dtype)


def stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor on the CPU that takes the memory of one element. peft puts an adapter where a weight is."""
    return torch.zeros(1, dtype=dtype).expand(shape)
