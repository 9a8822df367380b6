"""Makes a model compute in float32 for a while, to measure how far the arithmetic of its training is from that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.model.dequantized import dequantized_modules
from finetune_trainer.model.load import quantized_modules

if TYPE_CHECKING:
    from collections.abc import Iterator


def computes_in_float32(model: Any) -> bool:
    """Return whether the model computes in float32 already, as on a CPU."""
    exact = {module.weight for module in dequantized_modules(model).values() if module.exact}
    return all(
        parameter.dtype == torch.float32 or parameter in exact
        for parameter in model.parameters()
        if parameter.is_floating_point()
    )


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Compute in float32 inside of the `with` statement, with the same weights and the same adapter.

    It holds the other floating-point weights twice, in both types: the 4-bit ones stay packed, and dequantized ones are
    computed again for each product. Raises what `model.out_of_memory` recognizes if the device has no room. The model is
    as before afterwards, also after an error.
    """
    unpacked = list(dequantized_modules(model).values())
    stay = {module.weight for module in unpacked}
    before = {
        parameter: parameter.data
        for parameter in model.parameters()
        if parameter.is_floating_point() and parameter.dtype != torch.float32 and parameter not in stay
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
        for layer in unpacked:
            layer.exact = True
        yield
    finally:
        for layer in unpacked:
            layer.exact = False
        for parameter, data in before.items():
            parameter.data = data
        for module, (compute, dequantized) in zip(modules, types, strict=True):
            module.compute_dtype = compute
            module.weight.quant_state.dtype = dequantized
