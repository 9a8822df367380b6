from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from finetune_trainer.quantization.rounding import STORED, Noise, round_weights
from numpy.typing import NDArray

from tests.support.exact_models import bits

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NOISE = Noise.of(3, "layer.weight")


def sample(count: int = 20000) -> NDArray[np.float32]:
    """Return values of many magnitudes, with ties, both zeros and those between the smallest steps of a type."""
    torch.manual_seed(5)
    powers = torch.randint(-30, 4, (count,)).float()
    values = torch.randn(count) * 10**powers
    smallest = torch.tensor(
        [2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-14, 2.0**-14 - 2.0**-25, 0.0, -0.0, 1e-45]
    )
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11])
    return torch.cat([values, smallest, -smallest, ties, -ties]).numpy()


def rounded(
    values: NDArray[np.float32], dtype: str, noise: Noise | None = None, first: int = 0
) -> NDArray[np.float32]:
    out = np.empty(values.size, STORED[dtype])
    assert round_weights(values, dtype, out, noise, first)
    result: NDArray[np.float32] = torch.from_numpy(out).view(TYPES[dtype]).float().numpy()
    return result


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_nearest_values_equal_those_of_torch(dtype: str) -> None:
    values = sample()
    out = np.empty(values.size, STORED[dtype])
    round_weights(values, dtype, out)
    expected = torch.from_numpy(values).to(TYPES[dtype])
    assert np.array_equal(out.view(bits(expected).dtype), bits(expected))


def neighbors(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the largest magnitude of the type that is not above each value's, and the next one."""
    if dtype == "BF16":
        lower = values.view(np.uint32) & np.uint32(0xFFFF0000)
        return lower.view(np.float32), (lower + np.uint32(0x10000)).view(np.float32)
    halves = values.astype(np.float16)
    above = np.abs(halves.astype(np.float32)) > np.abs(values)
    codes = halves.view(np.uint16) - above.astype(np.uint16)
    return codes.view(np.float16).astype(np.float32), (codes + 1).view(np.float16).astype(np.float32)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_values_round_up_with_the_probability_of_their_distance(dtype: str) -> None:
    """The share of 1,000 seeds is within 6 standard errors, for each value and over all of them."""
    values, seeds = sample(300), 1000
    lower, upper = neighbors(values, dtype)
    draws = np.stack([rounded(values, dtype, Noise.of(seed, "w")) for seed in range(seeds)])
    assert ((draws == lower) | (draws == upper)).all()
    wide = [array.astype(np.float64) for array in (values, lower, upper)]
    expected = (wide[0] - wide[1]) / (wide[2] - wide[1])
    deviation = (draws == upper).mean(axis=0) - expected
    variance = expected * (1 - expected) / seeds
    assert (np.abs(deviation) <= 6 * np.sqrt(variance) + 2e-3 * (variance < 1e-6)).all()
    assert (deviation[expected == 0] == 0).all(), "a value of the type stays"
    assert abs(deviation.sum()) < 6 * math.sqrt(variance.sum())


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_blocks_of_any_size_give_the_same_bytes(dtype: str) -> None:
    values = sample(3000)
    whole = rounded(values, dtype, NOISE)
    for size in (1, 7, 256, 1000):
        parts = [
            rounded(values[start : start + size], dtype, NOISE, start)
            for start in range(0, values.size, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole), size


def test_positions_beyond_32_bits_have_their_own_noise() -> None:
    values = np.full(2000, 1 + 2**-9, np.float32)
    first = 2**32 - 1000
    whole = rounded(values, "BF16", NOISE, first)
    parts = [rounded(values[:500], "BF16", NOISE, first), rounded(values[500:], "BF16", NOISE, first + 500)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole[1000:], rounded(values[:1000], "BF16", NOISE, 0)), (
        "the noise must not repeat"
    )


def test_seeds_tensors_and_neighbors_have_independent_noise() -> None:
    values = np.full(20000, 1 + 2**-9, np.float32)
    ups = [rounded(values, "BF16", Noise.of(*key)) > 1 for key in ((0, "a"), (1, "a"), (0, "b"))]
    for up in ups:
        assert abs(up.mean() - 0.25) < 6 * math.sqrt(0.25 * 0.75 / values.size)
        for lag in (1, 2, 64, 4096):
            assert abs(float(np.corrcoef(up[:-lag], up[lag:])[0, 1])) < 6 / math.sqrt(values.size - lag)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(np.corrcoef(ups[one], ups[other])[0, 1])) < 6 / math.sqrt(values.size)


@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((dtype, value) for dtype in STORED for value in (math.nan, math.inf, -math.inf)),
        ("F16", 65536.0),
        ("F16", -7e4),
    ],
)
def test_values_that_are_not_finite_in_the_type_are_found(
    dtype: str, value: float, noise: Noise | None
) -> None:
    values = np.array([1.0, value, 2.0], np.float32)
    assert not round_weights(values, dtype, np.empty(3, STORED[dtype]), noise)


@pytest.mark.parametrize(("dtype", "last", "first"), [("F16", 65519.9, 65520.0), ("BF16", 3.39e38, 3.4e38)])
def test_a_value_that_rounds_to_infinity_is_found(dtype: str, last: float, first: float) -> None:
    out = np.empty(1, STORED[dtype])
    for value, finite in ((last, True), (first, False)):
        values = np.array([value], np.float32)
        assert round_weights(values, dtype, out) is finite
