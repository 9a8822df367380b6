"""An estimate: named terms, their phases and what they add up to. All sizes are integer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 512
"""PyTorch's CUDA allocator hands out multiples of this many bytes (c10/core/AllocatorConfig.h)."""


class Phase(StrEnum):
    """A stretch of a run with a peak of its own; terms of the phase Device come on top of every peak."""

    LOAD = "Load"
    PREPARE = "Prepare"
    LOSS = "Loss"
    RECOMPUTE = "Recompute"
    OPTIMIZER = "Optimizer"
    EVALUATION = "Evaluation"
    DEVICE = "Device"


@dataclass(frozen=True)
class Term:
    """One thing that holds memory during one phase. What lives through several phases has a term in each.

    `formula` is for people. `visible` is False for what a run with fake tensors cannot see: workspaces inside
    kernels, the CUDA context, fragmentation.
    """

    name: str
    bytes: int
    phase: Phase
    formula: str
    visible: bool = True


@dataclass(frozen=True)
class MemoryItem:
    """Something that holds memory. `formula` is for people; `visible` as in Term."""

    name: str
    bytes: int
    formula: str
    visible: bool = True

    def during(self, phase: Phase) -> Term:
        """Return the term of one phase."""
        return Term(self.name, self.bytes, phase, self.formula, self.visible)


@dataclass(frozen=True)
class Estimate:
    """Memory of one run on one GPU.

    The terms of a phase add up to `phases[phase]`; `peak_bytes`, what torch allocates at most, is the largest of
    these without Device; `device_bytes` = `peak_bytes` + the terms of Device is what nvidia-smi would show.
    `low_bytes` and `high_bytes` are the interval around `device_bytes` that the calibration supports.
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
        """The peak of what a run with fake tensors sees."""
        sums: dict[Phase, int] = {}
        for term in self.terms:
            if term.visible and term.phase is not Phase.DEVICE:
                sums[term.phase] = sums.get(term.phase, 0) + term.bytes
        return max(sums.values())

    def largest_terms(self) -> tuple[Term, ...]:
        """The terms of the bottleneck, largest first."""
        return tuple(
            sorted(
                (term for term in self.terms if term.phase is self.bottleneck), key=lambda term: -term.bytes
            )
        )


def allocated(size: int) -> int:
    """Bytes that a tensor of `size` bytes takes from the allocator."""
    return -(-size // BLOCK) * BLOCK


def blocks(elements: int, block: int) -> int:
    """Quantisation blocks that `elements` fill, the last one perhaps partly."""
    return -(-elements // block)
