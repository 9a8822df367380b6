"""Counts the live bytes while a layer runs forward and backward."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """The purpose of allocated memory."""

    SAVED = 0
    """Saved for the backward pass."""
    TEMPORARY = 1
    """Temporary results and gradients."""
    UNPACKED = 2
    """A packed matrix in 16 bits, and its constants in 32."""
    SCORES = 3
    """Attention scores, saved or temporary."""


class Meter:
    """Live bytes by kind, and their values at the moment of the largest total."""

    def __init__(self) -> None:
        self.now = [0, 0, 0, 0]
        self.total = 0
        self.peak = 0
        self.peak_with_workspaces = 0
        self.at_peak: tuple[int, ...] = (0, 0, 0, 0)

    def alloc(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Allocate `size` bytes."""
        self.now[kind] += size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = tuple(self.now)

    def free(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Free `size` bytes."""
        self.now[kind] -= size
        self.total -= size

    def save(self, size: int, kind: Kind = Kind.SAVED) -> None:
        """Turn `size` temporary bytes into saved ones; the total stays the same."""
        self.now[Kind.TEMPORARY] -= size
        self.now[kind] += size

    def transient(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Allocate and free `size` bytes."""
        self.alloc(size, kind)
        self.free(size, kind)

    def workspace(self, size: int) -> None:
        """Count `size` bytes inside a kernel, which a run with fake tensors does not see."""
        self.peak_with_workspaces = max(self.peak_with_workspaces, self.total + size)

    @property
    def kernel_workspace(self) -> int:
        """Bytes by which workspaces inside kernels raise the peak."""
        return max(0, self.peak_with_workspaces - self.peak)
