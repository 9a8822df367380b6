"""NF4 quantisation of bf16 weights at memory speed, equal to bitsandbytes byte for byte.

NF4 (QLoRA, Dettmers et al. 2023, section 3): blocks of 64 weights are divided by their largest magnitude
(absmax) and each is replaced by the nearest of 16 normal quantiles. Double quantisation then stores the
absmax values, less their mean, in 8 bits with one scale per 256 blocks; that part is 1/64 of the data and is
left to bitsandbytes itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bitsandbytes.functional
import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK = 64
NESTED_BLOCK = 256
# bitsandbytes has no annotations; Any says so once instead of at every call.
bnb: Any = bitsandbytes.functional
_BLOCKS_PER_TASK = 4096
# bf16 bit patterns from here on, sign removed, are infinite or not a number.
_FIRST_NOT_FINITE = 0x7F80


@dataclass(frozen=True)
class QuantizedSizes:
    """Element counts of the tensors that stand for one weight of `elements` elements."""

    elements: int

    @property
    def packed(self) -> int:
        """Bytes, two weights each."""
        return -(-self.elements // 2)

    @property
    def blocks(self) -> int:
        """Blocks of 64 weights, one absmax each."""
        return -(-self.elements // BLOCK)

    @property
    def nested_blocks(self) -> int:
        """Scales of the absmax values."""
        return -(-self.blocks // NESTED_BLOCK)


def quantize_bf16(bits: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantise whole blocks.

    `bits` are the bit patterns of bf16 weights, a multiple of 64 of them. Returns two weights a byte (the
    earlier one in the high half) and one absmax per block.
    """
    if bits.size % BLOCK:
        raise ValueError(f"the number of weights must be a multiple of {BLOCK}, found {bits.size}")
    packed = np.empty(bits.size // 2, np.uint8)
    absmax = np.empty(bits.size // BLOCK, np.float32)
    _quantize_blocks(np.ascontiguousarray(bits), _midpoints(), packed, absmax)
    return packed, absmax


def quantize_rest(weights: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantise a weight whose size is no multiple of 64, by bitsandbytes' own call.

    `weights` is bf16 of any shape; returns as `quantize_bf16`.
    """
    packed, state = bnb.quantize_4bit(weights, blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
    return packed.reshape(-1).numpy(), state.absmax.numpy()


def quantization_state(absmax: NDArray[np.float32], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Double-quantise the absmax values of one weight and return the tensors stored beside its packed bytes.

    Keys are bitsandbytes' suffixes: `absmax`, `quant_map`, `nested_absmax`, `nested_quant_map`,
    `quant_state.bitsandbytes__nf4`.
    """
    values = torch.from_numpy(absmax)
    # With several threads the sum's order, and so its last bit, would depend on the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    offset = values.mean()
    torch.set_num_threads(threads)
    codes, nested = bnb.quantize_blockwise(values - offset, blocksize=NESTED_BLOCK)
    state = bnb.QuantState(
        absmax=codes,
        shape=torch.Size(shape),
        dtype=torch.bfloat16,
        blocksize=BLOCK,
        code=bnb.get_4bit_type("nf4", device="cpu"),
        quant_type="nf4",
        offset=offset,
        state2=nested,
    )
    return dict(state.as_dict(packed=True))


def all_finite_bf16(bits: NDArray[np.uint16]) -> bool:
    """Whether no bf16 bit pattern means infinity or not-a-number."""
    return int(_largest_magnitude(np.ascontiguousarray(bits))) < _FIRST_NOT_FINITE


def bf16_chunks(
    chunks: Iterator[tuple[int, NDArray[np.uint8]]], dtype: str
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Turn (first element, raw bytes) of a BF16, F16 or F32 tensor into (first element, bf16 bit patterns).

    Wider types are rounded to nearest even, as `Tensor.to` does.
    """
    for first, raw in chunks:
        if dtype == "BF16":
            yield first, _view(raw, np.uint16)
        else:
            source = torch.from_numpy(_view(raw, np.float16 if dtype == "F16" else np.float32).copy())
            yield first, source.to(torch.bfloat16).view(torch.uint16).numpy()


def _view(raw: NDArray[np.uint8], dtype: Any) -> NDArray[Any]:
    # A tensor may start at any byte of its file, a view needs an aligned start.
    aligned = raw if raw.ctypes.data % np.dtype(dtype).itemsize == 0 else raw.copy()
    return aligned.view(dtype)


def _midpoints() -> NDArray[np.float32]:
    """Return the 15 borders between neighbouring NF4 values, in bitsandbytes' own rounding."""
    code = bnb.get_4bit_type("nf4", device="cpu")
    borders: NDArray[np.float32] = ((code[:-1] + code[1:]) / 2).numpy()
    return borders


@numba.njit(parallel=True, nogil=True, boundscheck=False, fastmath=False, cache=True)
def _quantize_blocks(
    weights: NDArray[np.uint16],
    borders: NDArray[np.float32],
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
) -> None:
    blocks = absmax.shape[0]
    for task in numba.prange((blocks + _BLOCKS_PER_TASK - 1) // _BLOCKS_PER_TASK):
        codes = np.empty(64, np.uint8)
        widened = np.empty(64, np.uint32)
        values = widened.view(np.float32)
        largest_bits = np.empty(1, np.uint32)
        largest = largest_bits.view(np.float32)
        for block in range(task * _BLOCKS_PER_TASK, min(blocks, (task + 1) * _BLOCKS_PER_TASK)):
            magnitude = np.uint16(0)
            for i in range(64):
                bits = weights[block * 64 + i]
                # A bf16 is the upper half of a float32, and magnitudes order as their bits do.
                widened[i] = np.uint32(bits) << np.uint32(16)
                bits &= np.uint16(0x7FFF)
                if bits > magnitude:  # noqa: PLR1730 -- max() would widen the type and slow the loop
                    magnitude = bits
            largest_bits[0] = np.uint32(magnitude) << np.uint32(16)
            absmax[block] = largest[0]
            inverse = np.float32(1.0) / max(largest[0], np.float32(1e-38))
            for i in range(64):
                scaled = values[i] * inverse
                code = np.uint8(0)
                for border in range(15):
                    code += np.uint8(scaled > borders[border])
                codes[i] = code
            for i in range(32):
                packed[block * 32 + i] = (codes[2 * i] << np.uint8(4)) | codes[2 * i + 1]


@numba.njit(nogil=True, boundscheck=False, cache=True)
def _largest_magnitude(bits: NDArray[np.uint16]) -> np.uint16:
    largest = np.uint16(0)
    for i in range(bits.size):
        magnitude = bits[i] & np.uint16(0x7FFF)
        if magnitude > largest:  # noqa: PLR1730 -- max() would widen the type and slow the loop
            largest = magnitude
    return largest
