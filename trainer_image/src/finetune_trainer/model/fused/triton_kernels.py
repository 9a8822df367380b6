"""RMSNorm, rotary embedding and the gate of an MLP, each in one kernel forward and one backward.

Each rounds where torch's operations round, so that results differ by the order of a sum at most. Weights of norms are
frozen, so only activations have gradients. A backward pass keeps its inputs, and never a tensor in float32 besides.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

_LARGEST_BLOCK = 1 << 16
_ELEMENTS = 1024
_OPTIONS = {"enable_fp_fusion": False}
"""A product and a sum that are fused round once, where torch's operations round twice."""


@triton.jit(do_not_specialize=["width", "epsilon"])
def _norm_forward(
    inputs,
    weights,
    outputs,
    factors,
    width,
    epsilon,
    added: tl.constexpr,
    rounds: tl.constexpr,
    block: tl.constexpr,
):
    """One row: `outputs` = x / rms(x) * (weight + added). `factors` gets 1 / rms(x)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    given = tl.load(inputs + row * width + columns, mask=inside, other=0.0)
    values = given.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / width + epsilon)
    weight = tl.load(weights + columns, mask=inside, other=0.0).to(tl.float32)
    scaled = values * factor
    if rounds:
        scaled = scaled.to(given.dtype).to(tl.float32)
    tl.store(outputs + row * width + columns, (scaled * (weight + added)).to(given.dtype), mask=inside)
    tl.store(factors + row, factor)


@triton.jit(do_not_specialize=["width"])
def _norm_backward(
    outer,
    inputs,
    weights,
    factors,
    gradients,
    width,
    added: tl.constexpr,
    rounds: tl.constexpr,
    block: tl.constexpr,
):
    """One row: with n = x / rms(x) and g = outer * (weight + added), the gradient is (g - n * mean(g * n)) / rms(x)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    given = tl.load(inputs + row * width + columns, mask=inside, other=0.0)
    factor = tl.load(factors + row)
    normed = given.to(tl.float32) * factor
    weight = tl.load(weights + columns, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(outer + row * width + columns, mask=inside, other=0.0).to(tl.float32) * (weight + added)
    if rounds:
        scaled = scaled.to(given.dtype).to(tl.float32)
    mean = tl.sum(scaled * normed, axis=0) / width
    gradient = factor * (scaled - normed * mean)
    tl.store(gradients + row * width + columns, gradient.to(given.dtype), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _rotate(
    inputs,
    outputs,
    cosines,
    sines,
    in_batch,
    in_head,
    in_token,
    out_batch,
    out_head,
    out_token,
    angle_batch,
    angle_token,
    tokens,
    half: tl.constexpr,
    backward: tl.constexpr,
    block: tl.constexpr,
):
    """One token and head: (a, b) become (a cos - b sin, b cos + a sin), or the gradient of that."""
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch, token = place // tokens, place % tokens
    columns = tl.arange(0, block)
    inside = columns < half
    start = inputs + batch * in_batch + head * in_head + token * in_token + columns
    first = tl.load(start, mask=inside, other=0.0)
    second = tl.load(start + half, mask=inside, other=0.0)
    kind = first.dtype
    angle = batch * angle_batch + token * angle_token + columns
    cosine1 = tl.load(cosines + angle, mask=inside, other=0.0).to(tl.float32)
    cosine2 = tl.load(cosines + angle + half, mask=inside, other=0.0).to(tl.float32)
    sine1 = tl.load(sines + angle, mask=inside, other=0.0).to(tl.float32)
    sine2 = tl.load(sines + angle + half, mask=inside, other=0.0).to(tl.float32)
    a, b = first.to(tl.float32), second.to(tl.float32)
    if backward:
        cross1, cross2 = b * sine2, -(a * sine1)
    else:
        cross1, cross2 = -b * sine1, a * sine2
    straight1, straight2 = a * cosine1, b * cosine2
    one = straight1.to(kind).to(tl.float32) + cross1.to(kind).to(tl.float32)
    two = straight2.to(kind).to(tl.float32) + cross2.to(kind).to(tl.float32)
    target = outputs + batch * out_batch + head * out_head + token * out_token + columns
    tl.store(target, one.to(kind), mask=inside)
    tl.store(target + half, two.to(kind), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _gate_forward(gates, ups, outputs, count, block: tl.constexpr):
    """`outputs` = silu(gate) * up."""
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < count
    gate = tl.load(gates + places, mask=inside, other=0.0)
    up = tl.load(ups + places, mask=inside, other=0.0).to(tl.float32)
    value = gate.to(tl.float32)
    active = (value / (1.0 + tl.exp(-value))).to(gate.dtype).to(tl.float32)
    tl.store(outputs + places, (active * up).to(gate.dtype), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _gate_backward(outer, gates, ups, gate_gradients, up_gradients, count, block: tl.constexpr):
    """The gradients of `_gate_forward` for both inputs."""
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < count
    gate = tl.load(gates + places, mask=inside, other=0.0)
    kind = gate.dtype
    up = tl.load(ups + places, mask=inside, other=0.0).to(tl.float32)
    grown = tl.load(outer + places, mask=inside, other=0.0).to(tl.float32)
    value = gate.to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-value))
    active = (value * share).to(kind).to(tl.float32)
    inner = (grown * up).to(kind).to(tl.float32)
    tl.store(up_gradients + places, (grown * active).to(kind), mask=inside)
    slope = share * (1.0 + value * (1.0 - share))
    tl.store(gate_gradients + places, (inner * slope).to(kind), mask=inside)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        added: float,
        rounds: bool,  # noqa: FBT001 -- autograd takes positions
    ) -> torch.Tensor:
        values = inputs.contiguous()
        width = values.shape[-1]
        rows = values.numel() // width
        outputs = torch.empty_like(values)
        factors = torch.empty(rows, dtype=torch.float32, device=values.device)
        block = _block(width)
        _norm_forward[(rows,)](
            values,
            weight,
            outputs,
            factors,
            width,
            epsilon,
            added,
            rounds,
            block,
            num_warps=_warps(block),
            **_OPTIONS,
        )
        ctx.save_for_backward(values, weight, factors)
        ctx.added, ctx.rounds = added, rounds
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        values, weight, factors = ctx.saved_tensors
        width = values.shape[-1]
        gradients = torch.empty_like(values)
        block = _block(width)
        _norm_backward[(factors.numel(),)](
            outer.contiguous(),
            values,
            weight,
            factors,
            gradients,
            width,
            ctx.added,
            ctx.rounds,
            block,
            num_warps=_warps(block),
            **_OPTIONS,
        )
        return gradients, None, None, None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(inputs, cosines, sines, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(outer, cosines, sines, backward=True), None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        outputs = torch.empty_like(gate)
        count = gate.numel()
        _gate_forward[(triton.cdiv(count, _ELEMENTS),)](gate, up, outputs, count, _ELEMENTS, **_OPTIONS)
        ctx.save_for_backward(gate, up)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        gradients = torch.empty_like(gate), torch.empty_like(up)
        count = gate.numel()
        _gate_backward[(triton.cdiv(count, _ELEMENTS),)](
            outer.contiguous(), gate, up, *gradients, count, _ELEMENTS, **_OPTIONS
        )
        return gradients


class TritonKernels:
    """The kernels of a GPU, as `layers.KernelSet` names them."""

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, *, added: float, rounds: bool
    ) -> torch.Tensor:
        """Return (..., width): `inputs` / rms * (`weight` + `added`), rounded before the scaling if `rounds`."""
        found: torch.Tensor = _Norm.apply(inputs, weight, epsilon, added, rounds)
        return found

    def rotate(self, inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Return (batch, heads, tokens, width), with each half of a head rotated with the other.

        `cosines` and `sines` are (batch or 1, tokens, width).
        """
        found: torch.Tensor = _Rotation.apply(inputs, cosines, sines)
        return found

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(`gate`) * `up`."""
        found: torch.Tensor = _Gate.apply(gate, up)
        return found


def _rotated(
    inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, *, backward: bool
) -> torch.Tensor:
    if inputs.stride(-1) != 1:
        inputs = inputs.contiguous()
    batch, heads, tokens, width = inputs.shape
    cosines, sines = cosines.contiguous(), sines.contiguous()
    outputs = torch.empty_like(inputs)
    shared = cosines.shape[0] == 1
    _rotate[(batch * tokens, heads)](
        inputs,
        outputs,
        cosines,
        sines,
        *inputs.stride()[:3],
        *outputs.stride()[:3],
        0 if shared else cosines.stride(0),
        cosines.stride(1),
        tokens,
        width // 2,
        backward,
        triton.next_power_of_2(width // 2),
        num_warps=1,
        **_OPTIONS,
    )
    return outputs


def _block(width: int) -> int:
    """Return the power of 2 that holds a row. Raises ValueError for a row that no kernel holds."""
    block: int = triton.next_power_of_2(width)
    if block > _LARGEST_BLOCK:
        raise ValueError(f"a row must have at most {_LARGEST_BLOCK} values, found {width}")
    return block


def _warps(block: int) -> int:
    """Return the warps for a row: each thread has about 8 values."""
    return max(1, min(16, block // 256))
