"""Kubernetes resource quantities as numbers of bytes, and byte counts as text for people."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_UNITS = {
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
    "m": -3,
    "u": -6,
    "n": -9,
}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2})|([a-zA-Z]{0,2}))")
MIB = 1 << 20
GIB = 1 << 30


def parse_bytes(quantity: str) -> int:
    """Read a quantity such as 16Gi, 20G or 1e9; a part of a byte counts as one. Raises ValueError for anything else."""
    match = _PATTERN.fullmatch(quantity.strip())
    if match is None:
        raise ValueError(f"a quantity must be a number with a unit such as 16Gi, found {quantity!r}")
    number, exponent, unit = Decimal(match[1]), match[2], match[3] or ""
    if exponent is not None:
        size = number.scaleb(int(exponent))
    elif unit in _BINARY:
        size = number * (1 << _BINARY[unit])
    elif unit in _UNITS:
        size = number.scaleb(_UNITS[unit])
    else:
        raise ValueError(f"a quantity's unit must be one such as Ki, Mi, Gi, k, M or G, found {quantity!r}")
    return int(size.to_integral_value(rounding=ROUND_CEILING))


def format_bytes(size: int) -> str:
    """`size` bytes, rounded up to whole Mi, or Gi where that is the same."""
    mebibytes = -(-size // MIB)
    return f"{mebibytes // 1024}Gi" if mebibytes and mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def whole_gibibytes(size: int) -> str:
    """`size` bytes, rounded up to whole Gi."""
    return format_bytes(-(-size // 2**30) * 2**30)


def binary_size(size: int) -> str:
    """`size` bytes in GiB, or in MiB below 0.1 GiB: three digits are enough to compare."""
    if abs(size) < GIB // 10:
        return f"{size / MIB:.0f} MiB"
    return f"{size / GIB:.2f} GiB" if abs(size) < 10 * GIB else f"{size / GIB:.1f} GiB"
