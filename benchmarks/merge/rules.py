"""Rules by which stacks round a merged weight to bf16, and what of the adapter's update is left after each.

All functions take float32 tensors of one weight: `base` is the exact base, `update` the adapter's update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Rule = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def nearest(base: torch.Tensor, update: torch.Tensor, _seed: int) -> torch.Tensor:
    """Add in float32 and round the sum once, to the nearest."""
    return (base + update).bfloat16()


def twice(base: torch.Tensor, update: torch.Tensor, _seed: int) -> torch.Tensor:
    """Round the base to bf16, add in float32, and round again."""
    return (base.bfloat16().float() + update).bfloat16()


def in_bf16(base: torch.Tensor, update: torch.Tensor, _seed: int) -> torch.Tensor:
    """Round base and update to bf16, and add in bf16: what peft's `merge_and_unload` does to a 16-bit model."""
    return base.bfloat16() + update.bfloat16()


def stochastic(base: torch.Tensor, update: torch.Tensor, seed: int) -> torch.Tensor:
    """Add in float32 and round once, up or down with the probability that keeps the mean."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 1 << 16, base.shape, generator=generator, dtype=torch.int32)
    bits = (base + update).contiguous().view(torch.int32)
    return ((bits + noise) & -65536).view(torch.float32).bfloat16()


@dataclass
class Survival:
    """Sums over weights from which the share of the update that survives follows."""

    products: float = 0.0
    intended: float = 0.0
    errors: float = 0.0

    def add(self, base: torch.Tensor, update: torch.Tensor, merged: torch.Tensor) -> None:
        """Count one weight. `merged` is the rounded one."""
        realized = merged.double() - base.double()
        intended = update.double()
        self.products += float((realized * intended).sum())
        self.intended += float(intended.square().sum())
        self.errors += float((realized - intended).square().sum())

    @property
    def projection(self) -> float:
        """The realized update projected on the intended one, as a share of it: 1 if all survived."""
        return self.products / self.intended

    @property
    def relative_error(self) -> float:
        """Norm of realized minus intended update, over the norm of the intended one."""
        return float((self.errors / self.intended) ** 0.5)
