"""Counts what lives while a layer runs forward and backward: the closed form of a tensor's lifetime."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """Why memory is held."""

    SAVED = 0
    """For the backward pass."""
    TEMPORARY = 1
    """Results and gradients on their way."""
    UNPACKED = 2
    """A packed matrix in 16 bits, and its constants in 32."""
    SCORES = 3
    """Attention scores, saved or on their way."""


class Meter:
    """Live bytes by kind, and what lived when all together were most."""

    def __init__(self) -> None:
        self.now = [0, 0, 0, 0]
        self.total = 0
        self.peak = 0
        self.peak_with_workspaces = 0
        self.at_peak: tuple[int, ...] = (0, 0, 0, 0)

    def alloc(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Let `size` bytes live from here on."""
        self.now[kind] += size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = tuple(self.now)

    def free(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Let `size` bytes be free again."""
        self.now[kind] -= size
        self.total -= size

    def save(self, size: int, kind: Kind = Kind.SAVED) -> None:
        """Let `size` bytes that live already be saved from here on."""
        self.now[Kind.TEMPORARY] -= size
        self.now[kind] += size

    def transient(self, size: int, kind: Kind = Kind.TEMPORARY) -> None:
        """Let `size` bytes live for a moment."""
        self.alloc(size, kind)
        self.free(size, kind)

    def workspace(self, size: int) -> None:
        """Let a kernel hold `size` bytes inside, where a run with fake tensors does not see them."""
        self.peak_with_workspaces = max(self.peak_with_workspaces, self.total + size)

    @property
    def kernel_workspace(self) -> int:
        """By how much kernels' workspaces raise the peak."""
        return max(0, self.peak_with_workspaces - self.peak)
