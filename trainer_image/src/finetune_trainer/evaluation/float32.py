"""Makes a model compute in float32 for a while, to measure how far the arithmetic of its training is from that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.model.load import quantized_modules

if TYPE_CHECKING:
    from collections.abc import Iterator


def computes_in_float32(model: Any) -> bool:
    """Return whether the model computes in float32 already, as on a CPU."""
    return all(
        parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.is_floating_point()
    )


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Compute in float32 inside of the `with` statement, with the same weights and the same adapter.

    It holds the other floating-point weights twice, in both types: the 4-bit ones stay packed. Raises
    what `model.out_of_memory` recognizes if the device has no room. The model is as before afterwards, also after an error.
    """
    before = {
        parameter: parameter.data
        for parameter in model.parameters()
        if parameter.is_floating_point() and parameter.dtype != torch.float32
    }
    modules = list(quantized_modules(model).values())
    types = [(module.compute_dtype, module.weight.quant_state.dtype) for module in modules]
    try:
        for parameter in before:
            parameter.data = parameter.data.float()
        for module in modules:
            module.compute_dtype = torch.float32
            # DoRA's norms, see `model.load.cast_model`.
            module.weight.quant_state.dtype = torch.float32
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data
        for module, (compute, dequantized) in zip(modules, types, strict=True):
            module.compute_dtype = compute
            module.weight.quant_state.dtype = dequantized
