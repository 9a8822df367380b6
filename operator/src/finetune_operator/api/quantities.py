"""Kubernetes resource quantities as numbers and back, and byte counts as text for people.

The grammar is the one of k8s.io/apimachinery (pkg/api/resource/quantity.go). Its client library for Python has a parser
too, but the operator's core imports no Kubernetes, and that parser accepts more (`5K`, `1_0`, `inf`).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, Field

MIB = 1 << 20
GIB = 1 << 30
_DECIMAL = {
    "n": -9,
    "u": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}
"""Powers of ten of the decimal suffixes."""
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
"""Powers of two of the binary suffixes."""
_GRAMMAR = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)|(?P<suffix>[KMGTPE]i|[numkMGTPE]?))"
)
_MAXIMUM_LENGTH = 256
"""Longer than any quantity that an API server writes, and short enough to compute with."""
_NANO = 10**9
_MAXIMUM = Fraction(2**63 - 1)
_MAXIMUM_EXPONENT = 2 * _MAXIMUM_LENGTH
"""Past this exponent every number of `_MAXIMUM_LENGTH` digits is over the maximum, or below one billionth."""


def parse_quantity(text: str) -> Fraction:
    """Read a quantity such as 500m, 1.5Gi, 1e9 or -2.

    The value is a multiple of one billionth, rounded away from zero like in Kubernetes. Its magnitude is at most 2**63 - 1,
    which is the limit that Kubernetes documents.
    Raises ValueError for anything that is not a quantity.
    """
    match = _GRAMMAR.fullmatch(text) if len(text) <= _MAXIMUM_LENGTH else None
    if match is None:
        raise ValueError(
            "a quantity must be a number, optionally with a suffix such as m, k, M, Ki, Mi or Gi, or an exponent such as e9; "
            f"found {text[:64]!r}"
        )
    value = Fraction(match["number"]) * _scale(match["exponent"], match["suffix"])
    size = min(Fraction(math.ceil(abs(value) * _NANO), _NANO), _MAXIMUM)
    return -size if value < 0 else size


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as 16Gi, 20G or 1e9, rounded up to whole bytes.

    Raises ValueError for anything that is not a quantity, and for a negative one.
    """
    size = parse_quantity(text)
    if size < 0:
        raise ValueError(f"a quantity of bytes must be at least 0, found {text!r}")
    return math.ceil(size)


def parse_count(text: str | None) -> int:
    """Read a number of devices such as 8 or 1k; 0 for None and for anything that is not a whole number of them."""
    try:
        count = parse_quantity(text or "")
    except ValueError:
        return 0
    return int(count) if count > 0 and count.denominator == 1 else 0


def format_bytes(size: int) -> str:
    """`size` bytes as a quantity, rounded up to whole Mi, or to whole Gi if that is the same."""
    mebibytes = -(-size // MIB)
    return f"{mebibytes // 1024}Gi" if mebibytes and mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def whole_gibibytes(size: int) -> str:
    """`size` bytes as a quantity, rounded up to whole Gi."""
    return format_bytes(-(-size // 2**30) * 2**30)


def binary_size(size: int) -> str:
    """`size` bytes in GiB, or in MiB below 0.1 GiB, with the three digits that a comparison needs."""
    if abs(size) < GIB // 10:
        return f"{size / MIB:.0f} MiB"
    return f"{size / GIB:.2f} GiB" if abs(size) < 10 * GIB else f"{size / GIB:.1f} GiB"


def _scale(exponent: str | None, suffix: str | None) -> Fraction:
    """The factor of an exponent or a suffix."""
    if exponent is not None:
        power = max(-_MAXIMUM_EXPONENT, min(int(exponent), _MAXIMUM_EXPONENT))
        return Fraction(10) ** power
    if suffix in _BINARY:
        return Fraction(2 ** _BINARY[suffix])
    return Fraction(10) ** _DECIMAL[suffix or ""]


def _check_amount(text: str) -> str:
    """Accept an amount of something: a quantity that is not negative."""
    if parse_quantity(text) < 0:
        raise ValueError(f"a quantity must be at least 0, found {text!r}")
    return text


Quantity = Annotated[str, Field(max_length=32), AfterValidator(_check_amount)]
"""An amount as a Kubernetes resource quantity, such as 500m or 16Gi, kept as it is written."""


MAXIMUM_CPUS = "100k"
MAXIMUM_BYTES = "1Pi"
"""Far above any node, and small enough that no sum in a status exceeds an int64. The CRD has the same bounds."""


def _check_cpus(text: str) -> str:
    if parse_quantity(text) > parse_quantity(MAXIMUM_CPUS):
        raise ValueError(f"must be at most {MAXIMUM_CPUS}, found {text!r}")
    return text


def _check_bytes(text: str) -> str:
    if parse_quantity(text) > parse_quantity(MAXIMUM_BYTES):
        raise ValueError(f"must be at most {MAXIMUM_BYTES}, found {text!r}")
    return text


CpuQuantity = Annotated[Quantity, AfterValidator(_check_cpus)]
ByteQuantity = Annotated[Quantity, AfterValidator(_check_bytes)]
"""An amount of memory or disk."""
