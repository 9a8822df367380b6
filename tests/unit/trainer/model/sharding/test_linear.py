"""A 4-bit layer whose scales are a parameter computes what bitsandbytes' own layer computes."""

from __future__ import annotations

from typing import Any

import bitsandbytes.nn
import pytest
import torch
from finetune_trainer.model.cpu_kernels import mend_cpu_kernels
from finetune_trainer.model.sharding.linear import ShardedLinear4bit, stand_in

# bitsandbytes is only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes.nn


def _layer(outputs: int, inputs: int, *, bias: bool) -> Any:
    torch.manual_seed(2)
    layer: Any = bnb.Linear4bit(inputs, outputs, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (70, 100)])
def test_values_and_gradients_are_equal_bit_for_bit(shape: tuple[int, int], *, bias: bool) -> None:
    mend_cpu_kernels()
    plain = _layer(*shape, bias=bias)
    state = plain.weight.quant_state.as_dict(packed=True)
    absmax = state.pop("absmax")
    layer = ShardedLinear4bit(plain, state, torch.float32)
    assert layer.weight.shape == plain.weight.shape
    layer.weight = torch.nn.Parameter(plain.weight.data, requires_grad=False)
    layer.absmax = torch.nn.Parameter(absmax[:, None], requires_grad=False)
    inputs = torch.randn(3, shape[1])
    results = []
    for each in (layer, plain):
        given = inputs.clone().requires_grad_()
        outputs = each(given)
        outputs.square().sum().backward()
        results.append((outputs.detach(), given.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_stand_in_takes_the_memory_of_one_element() -> None:
    found = stand_in((1000, 1000), torch.float32)
    assert found.shape == (1000, 1000)
    assert found.untyped_storage().nbytes() == 4
