"""Adds a low-rank update to rows of a weight in float32, with the same bits on every machine.

A matrix product of a library adds in an order that depends on the processor, the threads and the shape of the block. An
artifact that is resumed on another node would then differ. Here every element is one sum in the order of the ranks.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILE = 512  # columns; their part of A stays in the first cache for ranks up to 16
_LANES = 16


def add_low_rank(
    base: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Write `base + scale * (b @ a)` into `out`; base and out are (rows, in), a is (rank, in), b is (rows, rank)."""
    _add_low_rank(base, a, b, np.float32(scale), out)


def scale_rows(weight: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
    """Give each row of `weight` (rows, in) the Euclidean norm in `norms` (rows), in place."""
    _scale_rows(weight, norms)


@cache
def warm_up() -> None:
    """Compile the loops before several threads ask for them."""
    matrix = np.ones((1, 1), np.float32)
    add_low_rank(matrix, matrix, matrix, 1.0, np.empty((1, 1), np.float32))
    scale_rows(matrix, np.ones(1, np.float32))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _add_low_rank(
    base: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scale: np.float32,
    out: NDArray[np.float32],
) -> None:
    # Views that begin at zero: numba could not use vectors with a sum as an index.
    rows, columns = base.shape
    rank = a.shape[0]
    buffer = np.empty(_TILE, np.float32)
    for left in range(0, columns, _TILE):
        right = min(left + _TILE, columns)
        width = right - left
        total = buffer[:width]
        for row in range(rows):
            total[:] = np.float32(0)
            factors = b[row]
            k = 0
            while k + 4 <= rank:
                b0, b1, b2, b3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
                a0, a1 = a[k, left:right], a[k + 1, left:right]
                a2, a3 = a[k + 2, left:right], a[k + 3, left:right]
                for i in range(width):
                    part = np.float32(total[i] + np.float32(b0 * a0[i]))
                    part = np.float32(part + np.float32(b1 * a1[i]))
                    part = np.float32(part + np.float32(b2 * a2[i]))
                    total[i] = np.float32(part + np.float32(b3 * a3[i]))
                k += 4
            while k < rank:
                factor, values = factors[k], a[k, left:right]
                for i in range(width):
                    total[i] = np.float32(total[i] + np.float32(factor * values[i]))
                k += 1
            source, target = base[row, left:right], out[row, left:right]
            for i in range(width):
                target[i] = np.float32(source[i] + np.float32(scale * total[i]))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _scale_rows(weight: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
    rows, columns = weight.shape
    for row in range(rows):
        # The order of these sums is fixed, whatever the width of a processor's vectors.
        lanes = np.zeros(_LANES, np.float64)
        whole = columns - columns % _LANES
        for left in range(0, whole, _LANES):
            for lane in range(_LANES):
                value = np.float64(weight[row, left + lane])
                lanes[lane] += value * value
        square = 0.0
        for lane in range(_LANES):
            square += lanes[lane]
        for i in range(whole, columns):
            square += np.float64(weight[row, i]) * np.float64(weight[row, i])
        factor = np.float32(np.float64(norms[row]) / np.sqrt(square))
        for i in range(columns):
            weight[row, i] = np.float32(weight[row, i] * factor)
