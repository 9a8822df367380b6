"""How sizes are written for people."""

from __future__ import annotations

GIB = 1 << 30
MIB = 1 << 20


def binary_size(size: int) -> str:
    """`size` bytes in GiB, or in MiB below 0.1 GiB: three digits are enough to compare."""
    if abs(size) < GIB // 10:
        return f"{size / MIB:.0f} MiB"
    return f"{size / GIB:.2f} GiB" if abs(size) < 10 * GIB else f"{size / GIB:.1f} GiB"
