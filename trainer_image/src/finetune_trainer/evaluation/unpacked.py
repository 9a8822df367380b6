"""Keeps a small model's 4-bit weights dequantized for a while, because a CPU would dequantize all of them at every token."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import dequantize_4bit

from finetune_trainer.model.load import quantized_modules
from finetune_trainer.model.sharding.linear import ShardedLinear4bit

if TYPE_CHECKING:
    from collections.abc import Iterator

MAXIMUM_BYTES = 2 << 30
"""Most memory that the dequantized weights take. A larger model stays packed."""


@contextmanager
def unpacked_on_cpu(model: Any) -> Iterator[None]:
    """Multiply with dequantized weights inside of the `with` statement if the model is on a CPU and small.

    The values are those that each multiplication would dequantize. On a GPU nothing changes: it dequantizes as fast as
    it reads. The model is as before afterwards, also after an error.
    """
    # The weights of a sharded model are there only while a layer computes.
    modules = [
        module
        for module in quantized_modules(model).values()
        if module.weight.device.type == "cpu" and not isinstance(module, ShardedLinear4bit)
    ]
    size = sum(module.in_features * module.out_features * module.compute_dtype.itemsize for module in modules)
    if size > MAXIMUM_BYTES:
        modules = []
    try:
        for module in modules:
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(module.compute_dtype)
            module.forward = partial(torch.nn.functional.linear, weight=weight, bias=module.bias)
        yield
    finally:
        for module in modules:
            # The instance's attribute hides the method of its class.
            module.__dict__.pop("forward", None)
