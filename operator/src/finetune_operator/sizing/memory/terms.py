"""An estimate: named terms, their phases and their sums. All sizes are integer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 512
"""PyTorch's CUDA allocator hands out multiples of this many bytes (c10/core/AllocatorConfig.h)."""


class NotTracedError(ValueError):
    """Nothing is known about the memory of a plan."""


class Phase(StrEnum):
    """A part of a run with its own peak; terms of the phase Device are added to every peak."""

    LOAD = "Load"
    PREPARE = "Prepare"
    LOSS = "Loss"
    RECOMPUTE = "Recompute"
    OPTIMIZER = "Optimizer"
    EVALUATION = "Evaluation"
    DEVICE = "Device"


@dataclass(frozen=True)
class Term:
    """One use of memory during one phase. Memory that lives through several phases has a term in each.

    `formula` is for people. `visible` is False for memory that a run with fake tensors cannot see: workspaces inside
    kernels, the CUDA context, fragmentation.
    """

    name: str
    bytes: int
    phase: Phase
    formula: str
    visible: bool = True


@dataclass(frozen=True)
class MemoryItem:
    """A named use of memory in bytes, not yet assigned to a phase. `formula` is for people; `visible` is as in Term."""

    name: str
    bytes: int
    formula: str
    visible: bool = True

    def during(self, phase: Phase) -> Term:
        """Return the item as a term of one phase."""
        return Term(self.name, self.bytes, phase, self.formula, self.visible)


@dataclass(frozen=True)
class Estimate:
    """Memory of one run on one GPU.

    The terms of a phase add up to `phases[phase]`. `peak_bytes` is torch's largest allocation: the largest phase without
    Device. `device_bytes` is `peak_bytes` plus the terms of Device, as nvidia-smi shows it. `low_bytes` and `high_bytes`
    are the interval around `device_bytes` that the calibration supports.
    """

    terms: tuple[Term, ...]
    phases: Mapping[Phase, int]
    peak_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int
    bottleneck: Phase
    stack: str
    """Name and version of the stack profile."""
    calibration: str
    """Version of the calibration, `none` without one."""

    @property
    def visible_peak_bytes(self) -> int:
        """The peak of the memory that a run with fake tensors sees."""
        sums: dict[Phase, int] = {}
        for term in self.terms:
            if term.visible and term.phase is not Phase.DEVICE:
                sums[term.phase] = sums.get(term.phase, 0) + term.bytes
        return max(sums.values())

    def largest_terms(self) -> tuple[Term, ...]:
        """Return the terms of the bottleneck, largest first."""
        return tuple(
            sorted(
                (term for term in self.terms if term.phase is self.bottleneck), key=lambda term: -term.bytes
            )
        )


def allocated(size: int) -> int:
    """Return the bytes that a tensor of `size` bytes takes from the allocator."""
    return -(-size // BLOCK) * BLOCK


def blocks(elements: int, block: int) -> int:
    """Return the number of quantization blocks that `elements` fill, the last one perhaps partly."""
    return -(-elements // block)
