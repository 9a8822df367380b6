from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.quantization.low_rank import add_low_rank, scale_rows
from numpy.typing import NDArray


def matrix(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 700, 16), (3, 33, 1), (1, 1, 7), (2, 1025, 6)])
def test_the_sum_equals_that_of_double_precision(rows: int, columns: int, rank: int) -> None:
    base, a, b = matrix(rows, columns, 1), matrix(rank, columns, 2), matrix(rows, rank, 3)
    out = np.empty_like(base)
    add_low_rank(base, a, b, 0.25, out)
    expected = base.astype(np.float64) + 0.25 * (b.astype(np.float64) @ a)
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_each_row_is_the_same_alone_and_in_any_block() -> None:
    """A resumed merge may compute other blocks; its bytes must not differ."""
    base, a, b = matrix(9, 130, 1), matrix(10, 130, 2), matrix(9, 10, 3)
    whole, parts = np.empty_like(base), np.empty_like(base)
    add_low_rank(base, a, b, 0.3, whole)
    for row in range(9):
        add_low_rank(base[row : row + 1], a, b[row : row + 1], 0.3, parts[row : row + 1])
    assert np.array_equal(whole, parts)


def test_the_order_of_the_sum_is_that_of_the_ranks() -> None:
    """Each product and sum is rounded once, together: no processor may do otherwise. Doubles hold a product exactly."""
    base, a, b = matrix(1, 40, 1), matrix(13, 40, 2), matrix(1, 13, 3)

    def fused(
        factor: np.float32, values: NDArray[np.float32], added: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return (np.float64(factor) * values.astype(np.float64) + added).astype(np.float32)

    total = np.zeros(40, np.float32)
    for k in range(13):
        total = fused(b[0, k], a[k], total)
    out = np.empty_like(base)
    add_low_rank(base, a, b, 0.7, out)
    assert np.array_equal(out[0], fused(np.float32(0.7), total, base[0]))


def test_rows_get_their_norm() -> None:
    weight = matrix(4, 37, 1)
    directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    norms = np.array([1.0, 0.5, 30.0, 0.0], np.float32)
    scale_rows(weight, norms)
    assert np.allclose(weight, directions * norms[:, None], rtol=1e-6, atol=1e-7)
