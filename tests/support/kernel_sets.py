"""Substitutes for the kernels of a GPU, so that a CPU can try what surrounds them, and models to try them on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from finetune_trainer.model.fused.device import DeviceKernels
from finetune_trainer.model.fused.policy import FAMILIES, KERNELS, Kernel

from tests.support.architectures import tiny


class EqualKernels:
    """Formulas of the kernels in plain operations; `calls` counts how often each computed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, *, added: float, rounds: bool
    ) -> torch.Tensor:
        self.calls["RmsNorm"] += 1
        values = inputs.float()
        scaled = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
        if rounds:
            return scaled.to(inputs.dtype) * weight
        return (scaled * (weight.float() + added)).to(inputs.dtype)

    def rotate(self, inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        self.calls["Rope"] += 1
        first, second = inputs.chunk(2, dim=-1)
        return inputs * cosines[:, None] + torch.cat((-second, first), dim=-1) * sines[:, None]

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        self.calls["SwiGlu"] += 1
        return torch.nn.functional.silu(gate) * up


class _Scaled(torch.autograd.Function):
    """The identity, with gradients that are one percent too large."""

    @staticmethod
    def forward(_ctx: object, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(_ctx: object, outer: torch.Tensor) -> torch.Tensor:
        return outer * 1.01


class WrongGradientKernels(EqualKernels):
    """The values are right, and the gradients of a gate are not."""

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Scaled.apply(super().gate(gate, up))
        return found


class RaisingKernels(EqualKernels):
    """One kernel cannot be compiled, and another gives no numbers."""

    def rms_norm(self, *_arguments: Any, **_settings: Any) -> torch.Tensor:
        raise RuntimeError("ptxas fatal: unknown architecture")

    def rotate(self, inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        return super().rotate(inputs, cosines, sines) * float("nan")


def on_a_gpu(kernels: EqualKernels) -> DeviceKernels:
    """Return what a GPU of capability 9.0 with these kernels would offer."""
    return DeviceKernels("cuda", kernels, None, (9, 0))


def frozen(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tiny model whose norms have weights of their own."""
    model = tiny(family).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model.to(dtype)


def chosen(family: str) -> list[Kernel]:
    """Return the kernels that the policy names for a family."""
    found = FAMILIES[family]
    gated = found.gated and not family.startswith("gemma")
    fits = {"RmsNorm": True, "Rope": found.half_rotation, "SwiGlu": gated}
    return [name for name in KERNELS if fits[name]]
