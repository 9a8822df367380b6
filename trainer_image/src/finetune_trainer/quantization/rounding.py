"""Rounds float32 weights to the type of a file, to nearest or stochastically.

A weight on the grid of bf16 swallows every update of less than half a step if the sum is rounded to nearest. Unbiased
stochastic rounding keeps it in the mean: a value rounds up with the probability of its distance from the lower neighbor
(Gupta et al. 2015, section 3). Here the random bits are a hash of seed, tensor name and position, so two merges give
equal bytes, whatever the size of their blocks and the number of their threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32}
"""The types that can be written, with the numpy type of their bit patterns."""


@dataclass(frozen=True)
class Noise:
    """The random bits of one tensor: two 32-bit keys."""

    first: int
    second: int

    @classmethod
    def of(cls, seed: int, tensor: str) -> Noise:
        """Return the noise of a tensor's name; two names or two seeds give independent noise."""
        digest = hashlib.sha256(f"{seed}\n{tensor}".encode()).digest()
        return cls(int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))


def round_weights(
    exact: NDArray[np.float32], dtype: str, out: NDArray[Any], noise: Noise | None = None, first: int = 0
) -> bool:
    """Round the flat values `exact` to `dtype` (BF16, F16 or F32) into `out`; return whether all of `out` is finite.

    Both arrays have one length, and `out` has the element type that STORED names. Without `noise`, values round to the
    nearest, ties to even. With it they round stochastically; `first` is the position of the first value in its tensor.
    """
    if dtype == "F32":
        np.copyto(out, exact)
        return bool(np.isfinite(exact).all())
    kernel = _round_bf16 if dtype == "BF16" else _round_f16
    keys = (
        (np.uint32(0), np.uint32(0)) if noise is None else (np.uint32(noise.first), np.uint32(noise.second))
    )
    return bool(kernel(exact, out, keys, first, noise is not None))


@cache
def warm_up() -> None:
    """Compile the loops before several threads ask for them."""
    values = np.zeros(1, np.float32)
    for dtype, stored in STORED.items():
        round_weights(values, dtype, np.zeros(1, stored))


@numba.njit(nogil=True)
def _float(bits: np.uint32) -> np.float32:
    """Return the float32 with this bit pattern."""
    return np.uint32(bits).view(np.float32)


@numba.njit(nogil=True)
def _random(position: np.uint32, high: np.uint32, first: np.uint32, second: np.uint32) -> np.uint32:
    """Return 32 random bits of a position: two rounds of a 32-bit mixing function, with a key before each.

    The function is lowbias32, found by Wellons (https://nullprogram.com/blog/2018/07/31/).
    """
    x = np.uint32(position ^ first)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    x = np.uint32((x ^ (x >> np.uint32(16))) ^ second ^ high)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _round_bf16(
    exact: NDArray[np.float32],
    out: NDArray[np.uint16],
    keys: tuple[np.uint32, np.uint32],
    first: int,
    stochastic: bool,  # noqa: FBT001 -- numba has no keyword-only arguments
) -> bool:
    bits = exact.view(np.uint32)
    largest = np.uint32(0)
    start = 0
    while start < exact.size:
        position = first + start
        # A part ends where the low half of the position begins anew.
        end = min(start + 0x100000000 - (position & 0xFFFFFFFF), exact.size)
        low, high = np.uint32(position & 0xFFFFFFFF), np.uint32(position >> 32)
        high = np.uint32(high * np.uint32(0x9E3779B1))
        # Views that begin at zero: numba could not use vectors with a sum as an index.
        patterns, written = bits[start:end], out[start:end]
        for i in range(end - start):
            pattern = patterns[i]
            if stochastic:
                random = _random(np.uint32(low + np.uint32(i)), high, keys[0], keys[1])
                added = np.uint32(random >> np.uint32(16))
            else:
                added = np.uint32(np.uint32(0x7FFF) + ((pattern >> np.uint32(16)) & np.uint32(1)))
            # What is not finite must stay so: adding could carry into the sign.
            magnitude = np.uint32(pattern & np.uint32(0x7FFFFFFF))
            added = np.uint32(0) if magnitude >= np.uint32(0x7F800000) else added
            rounded = np.uint32((pattern + added) & np.uint32(0xFFFF0000))
            magnitude = np.uint32(rounded & np.uint32(0x7FFFFFFF))
            magnitude = (
                magnitude
                if pattern & np.uint32(0x7FFFFFFF) < np.uint32(0x7F800000)
                else np.uint32(0x7F800000)
            )
            largest = magnitude if magnitude > largest else largest  # noqa: FURB136 -- max() would widen the type
            written[i] = np.uint16(rounded >> np.uint32(16))
        start = end
    return bool(largest < np.uint32(0x7F800000))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _round_f16(
    exact: NDArray[np.float32],
    out: NDArray[np.uint16],
    keys: tuple[np.uint32, np.uint32],
    first: int,
    stochastic: bool,  # noqa: FBT001 -- numba has no keyword-only arguments
) -> bool:
    bits = exact.view(np.uint32)
    finite = True
    for i in range(exact.size):
        pattern = bits[i]
        sign = np.uint32((pattern >> np.uint32(16)) & np.uint32(0x8000))
        magnitude = np.uint32(pattern & np.uint32(0x7FFFFFFF))
        position = first + i
        random = np.uint32(0)
        if stochastic:
            high = np.uint32(np.uint32(position >> 32) * np.uint32(0x9E3779B1))
            random = _random(np.uint32(position & 0xFFFFFFFF), high, keys[0], keys[1])
        if magnitude < np.uint32(0x38800000):
            # Below 2^-14 all steps of f16 are 2^-24.
            steps = np.float64(_float(magnitude)) * 16777216.0
            if stochastic:
                code = np.uint32(np.floor(steps + np.float64(random) * (1.0 / 4294967296.0)))
            else:
                code = np.uint32(np.rint(steps))
        else:
            if stochastic:
                added = np.uint32(random >> np.uint32(19))
            else:
                added = np.uint32(np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1)))
            nearest = np.uint32((magnitude + added) & np.uint32(0xFFFFE000))
            # Also what is not finite becomes infinity: it is refused anyway.
            rounded = nearest if nearest < np.uint32(0x47800000) else np.uint32(0x47800000)  # noqa: FURB136 -- as above
            if nearest >= np.uint32(0x47800000):
                finite = False
            code = np.uint32((rounded - np.uint32(0x38000000)) >> np.uint32(13))
        out[i] = np.uint16(sign | code)
    return finite
