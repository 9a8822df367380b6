"""The quantizing loops give the same bits as bitsandbytes and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bitsandbytes.functional
import numpy as np
import pytest
import torch
from finetune_trainer.quantization.nf4 import (
    BLOCK,
    NESTED_BLOCK,
    QuantizedSizes,
    first_not_finite,
    quantization_state,
    quantize_bf16,
    to_bf16,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Make bitsandbytes compute its mean in the same order as the product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def finite(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Clear the lowest exponent bit of infinities and NaN."""
    return np.where((bits & 0x7FFF) >= 0x7F80, bits & 0xFF7F, bits).astype(np.uint16)


def patterns(count: int, low: int = 0, high: int = 1 << 15) -> NDArray[np.uint16]:
    """Return finite bit patterns with magnitudes from `low` to `high` and random signs."""
    generator = np.random.default_rng(low * 65536 + high + count)
    magnitudes = generator.integers(low, high, count)
    return finite((magnitudes | generator.integers(0, 2, count) << 15).astype(np.uint16))


def normal(count: int) -> NDArray[np.uint16]:
    weights = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 0.02
    bits: NDArray[np.uint16] = weights.to(torch.bfloat16).view(torch.uint16).numpy()
    return bits


def assert_equals_bitsandbytes(bits: NDArray[np.uint16]) -> None:
    weights = torch.from_numpy(bits.copy()).view(torch.bfloat16)
    functions: Any = bitsandbytes.functional
    expected_packed, expected = functions.quantize_4bit(
        weights, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
    )
    sizes = QuantizedSizes(bits.size)
    packed = np.empty(sizes.packed, np.uint8)
    absmax = np.empty(sizes.blocks, np.float32)
    quantize_bf16(bits, packed, absmax)
    assert np.array_equal(packed, expected_packed.reshape(-1).numpy())
    found = quantization_state(absmax, (bits.size,))
    stored = expected.as_dict(packed=True)
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(normal(BLOCK * NESTED_BLOCK * 40), id="normal weights"),
        pytest.param(patterns(BLOCK * 20_000), id="any finite pattern"),
        pytest.param(patterns(BLOCK * 2_000, 0, 0x80), id="denormal weights"),
        pytest.param(patterns(BLOCK * 2_000, 0, 0x180), id="around the smallest scale"),
        pytest.param(patterns(BLOCK * 500, 0x7F00, 0x7F80), id="the largest exponent"),
        pytest.param(np.zeros(BLOCK * 300, np.uint16), id="zeros"),
        pytest.param(np.full(BLOCK * 300, 0x8000, np.uint16), id="negative zeros"),
        pytest.param(np.full(BLOCK * 300, 0xBF80, np.uint16), id="one value"),
        pytest.param(np.zeros(17, np.uint16), id="a tail of zeros"),
        pytest.param(np.full(17, 0x8000, np.uint16), id="a tail of negative zeros"),
        pytest.param(patterns(33, 0, 0x80), id="a denormal tail"),
    ],
)
def test_bytes_equal_bitsandbytes(bits: NDArray[np.uint16]) -> None:
    assert_equals_bitsandbytes(bits)


def test_every_exponent_of_a_block_equals_bitsandbytes() -> None:
    """The borders are computed with integers, and must equal those of the division for every scale."""
    assert_equals_bitsandbytes(
        np.concatenate(
            [patterns(BLOCK * 100, max(0, exponent - 6) << 7, (exponent + 1) << 7) for exponent in range(255)]
        )
    )


@pytest.mark.parametrize(
    "count",
    [1, 2, 3, 63, 64, 65, 127, BLOCK * NESTED_BLOCK - 1, BLOCK * NESTED_BLOCK + 1, BLOCK * NESTED_BLOCK * 3],
)
def test_any_number_of_weights_equals_bitsandbytes(count: int) -> None:
    assert_equals_bitsandbytes(normal(count))
    assert_equals_bitsandbytes(patterns(count))


def test_pieces_of_whole_blocks_give_the_same_bytes_as_the_whole() -> None:
    bits = normal(BLOCK * 100 + 7)
    sizes = QuantizedSizes(bits.size)
    whole, absmax = np.empty(sizes.packed, np.uint8), np.empty(sizes.blocks, np.float32)
    quantize_bf16(bits, whole, absmax)
    packed, scales = np.empty_like(whole), np.empty_like(absmax)
    for first in range(0, bits.size, BLOCK * 30):
        piece = bits[first : first + BLOCK * 30]
        of_piece = QuantizedSizes(piece.size)
        quantize_bf16(
            piece,
            packed[first // 2 : first // 2 + of_piece.packed],
            scales[first // BLOCK : first // BLOCK + of_piece.blocks],
        )
    assert np.array_equal(packed, whole)
    assert np.array_equal(scales, absmax)


def test_sizes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="33 packed bytes and 2 absmax values"):
        quantize_bf16(np.zeros(65, np.uint16), np.empty(32, np.uint8), np.empty(2, np.float32))


@pytest.mark.parametrize("count", [BLOCK * 3, BLOCK * 3 + 5])
@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_values_that_are_not_finite_are_found_in_the_absmax(count: int, pattern: int) -> None:
    for place in (0, BLOCK, count - 1):
        bits = normal(count)
        bits[place] = pattern
        sizes = QuantizedSizes(count)
        absmax = np.empty(sizes.blocks, np.float32)
        quantize_bf16(bits, np.empty(sizes.packed, np.uint8), absmax)
        assert not np.isfinite(absmax[place // BLOCK])
        assert first_not_finite(bits) == place
    assert first_not_finite(normal(count)) is None


def test_wider_types_are_rounded_like_in_torch() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    out = np.empty(halves.size, np.uint16)
    expected = torch.from_numpy(halves).view(torch.float16).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(to_bf16(halves.view(np.uint8), "F16", out), expected)
    floats = np.random.default_rng(1).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    # Half-way cases, and NaN patterns that a carry into the sign must not turn into numbers.
    floats[: 2**16] = np.arange(2**16, dtype=np.uint32) << 16 | 0x8000
    floats[2**16 : 2**17] = np.arange(2**16, dtype=np.uint32) << 16 | 0xFFFF
    out = to_bf16(floats.view(np.uint8), "F32", np.empty(floats.size, np.uint16))
    expected = torch.from_numpy(floats.view(np.float32)).to(torch.bfloat16).view(torch.uint16).numpy()
    numbers = ~np.isnan(floats.view(np.float32))
    assert np.array_equal(out[numbers], expected[numbers])
    assert ((out[~numbers] & 0x7FFF) > 0x7F80).all()
