"""Adds a low-rank update to rows of a weight in float32, with the same bits on every machine.

A matrix product of a library adds in an order that depends on the processor, the threads and the shape of the block. An
artifact that is resumed on another node would then differ. Here every element is one sum in the order of the ranks, of
multiplications and additions that are rounded together (IEEE 754 `fusedMultiplyAdd`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILE = 256  # columns; their part of A stays in the first cache for ranks up to 16
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


def _fused(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """Return a * b + c in float32, rounded once. Processors without the instruction compute the same value."""

    def generate(_target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


# Numba's annotation counts the context, which calls do not pass.
_fma: Any = intrinsic(_fused)


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _add_low_rank(
    base: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scale: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Compute two rows at a time, so that each value of A is loaded once for both."""
    rows, columns = base.shape
    rank = a.shape[0]
    sums = np.empty((2, _TILE), np.float32)
    for left in range(0, columns, _TILE):
        right = min(left + _TILE, columns)
        width = right - left
        upper, lower = sums[0, :width], sums[1, :width]
        for row in range(0, rows, 2):
            # A last single row is its own partner.
            other = min(row + 1, rows - 1)
            upper[:] = np.float32(0)
            lower[:] = np.float32(0)
            b0, b1 = b[row], b[other]
            k = 0
            while k + 4 <= rank:
                # Views that begin at zero: numba could not use vectors with a sum as an index.
                a0, a1 = a[k, left:right], a[k + 1, left:right]
                a2, a3 = a[k + 2, left:right], a[k + 3, left:right]
                p0, p1, p2, p3 = b0[k], b0[k + 1], b0[k + 2], b0[k + 3]
                q0, q1, q2, q3 = b1[k], b1[k + 1], b1[k + 2], b1[k + 3]
                for i in range(width):
                    x0, x1, x2, x3 = a0[i], a1[i], a2[i], a3[i]
                    upper[i] = _fma(p3, x3, _fma(p2, x2, _fma(p1, x1, _fma(p0, x0, upper[i]))))
                    lower[i] = _fma(q3, x3, _fma(q2, x2, _fma(q1, x1, _fma(q0, x0, lower[i]))))
                k += 4
            while k < rank:
                p, q, values = b0[k], b1[k], a[k, left:right]
                for i in range(width):
                    upper[i] = _fma(p, values[i], upper[i])
                    lower[i] = _fma(q, values[i], lower[i])
                k += 1
            source, target = base[row, left:right], out[row, left:right]
            for i in range(width):
                target[i] = _fma(scale, upper[i], source[i])
            source, target = base[other, left:right], out[other, left:right]
            for i in range(width):
                target[i] = _fma(scale, lower[i], source[i])


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
