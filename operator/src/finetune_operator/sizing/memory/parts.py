"""What terms are made of: a named number of bytes that has not been put into a phase yet."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.sizing.memory.terms import Phase, Term

BLOCK = 512
"""PyTorch's CUDA allocator hands out multiples of this many bytes (c10/core/AllocatorConfig.h)."""


@dataclass(frozen=True)
class Part:
    """Something that holds memory. `formula` is for people; `visible` as in Term."""

    name: str
    bytes: int
    formula: str
    visible: bool = True

    def during(self, phase: Phase) -> Term:
        """Return the term of one phase."""
        return Term(self.name, self.bytes, phase, self.formula, self.visible)


def allocated(size: int) -> int:
    """Bytes that a tensor of `size` bytes takes from the allocator."""
    return -(-size // BLOCK) * BLOCK


def blocks(elements: int, block: int) -> int:
    """Quantisation blocks that `elements` fill, the last one perhaps partly."""
    return -(-elements // block)
