"""NF4 with double quantization of bf16 weights at memory speed; the bytes equal those of bitsandbytes.

NF4 (QLoRA, Dettmers et al. 2023, section 3): blocks of 64 weights are divided by their largest magnitude
(absmax) and each is replaced by the nearest of 16 normal quantiles. Double quantization then stores the
absmax values, less their mean, in 8 bits with one scale per 256 blocks. That part is 1/64 of the data. It takes 3 %
of the time, so it is bitsandbytes' own call, which rounds with its own table.

Functions work on numpy arrays of the caller and release the interpreter lock, so that several threads can quantize
parts of one weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import bitsandbytes.functional
import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 64
NESTED_BLOCK = 256
# bitsandbytes has no annotations; Any is written once here instead of at every call.
bnb: Any = bitsandbytes.functional
# bf16 bit patterns from here on, sign removed, are infinite or not a number.
_FIRST_NOT_FINITE = np.uint16(0x7F80)
_SMALLEST_SCALE = np.float32(1e-38)  # bitsandbytes divides by at least this


@dataclass(frozen=True)
class QuantizedSizes:
    """Element counts of the tensors that represent one weight of `elements` elements."""

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


def quantize_bf16(bits: NDArray[np.uint16], packed: NDArray[np.uint8], absmax: NDArray[np.float32]) -> None:
    """Quantize consecutive weights. Only the tensor's last block may be shorter than 64.

    `bits` are the bit patterns of finite bf16 weights. `packed` receives two weights per byte, the earlier one
    in the high half; a last odd weight is paired with zero's code. `absmax` receives one value per block. Both must
    have the sizes of QuantizedSizes. Raises ValueError for other sizes.
    """
    sizes = QuantizedSizes(bits.size)
    if packed.size != sizes.packed or absmax.size != sizes.blocks:
        raise ValueError(
            f"{bits.size} weights need {sizes.packed} packed bytes and {sizes.blocks} absmax values, "
            f"found {packed.size} and {absmax.size}"
        )
    borders = _borders()
    full = bits.size // BLOCK
    _quantize_blocks(bits[: full * BLOCK], borders, packed[: full * BLOCK // 2], absmax[:full])
    if bits.size % BLOCK:
        _quantize_tail(bits[full * BLOCK :], borders, packed[full * BLOCK // 2 :], absmax[full:])


def quantization_state(absmax: NDArray[np.float32], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Double-quantize the absmax values of one weight; return the tensors that are stored with its packed bytes.

    `absmax` is overwritten. The keys are bitsandbytes' suffixes: `absmax`, `quant_map`, `nested_absmax`,
    `nested_quant_map`, `quant_state.bitsandbytes__nf4`. The mean is that of bitsandbytes with
    one thread: with several threads its last bit would depend on the number of cores.
    """
    values = torch.from_numpy(absmax)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    offset = values.mean()
    torch.set_num_threads(threads)
    codes, nested = bnb.quantize_blockwise(values.sub_(offset), blocksize=NESTED_BLOCK)
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


def first_not_finite(bits: NDArray[np.uint16]) -> int | None:
    """Return the index of the first bf16 bit pattern of infinity or not-a-number; None if there is none."""
    if _largest_magnitude(bits) < _FIRST_NOT_FINITE:
        return None
    return int(np.argmax((bits & np.uint16(0x7FFF)) >= _FIRST_NOT_FINITE))


def to_bf16(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the bf16 bit patterns of the BF16, F16 or F32 weights whose bytes are `raw`.

    Rounds to nearest even, as `Tensor.to` does. `out` has one element per weight; it is used unless `raw` can be
    returned unchanged.
    """
    if dtype == "BF16":
        return raw.view(np.uint16)
    if dtype == "F16":
        np.take(_bf16_of_f16(), raw.view(np.uint16), out=out, mode="clip")
    else:
        _round_f32(raw.view(np.uint32), out)
    return out


@cache
def warm_up() -> None:
    """Compile the loops before several threads ask for them (2 s at first use, then cached on disk)."""
    bits = np.zeros(BLOCK + 1, np.uint16)
    sizes = QuantizedSizes(bits.size)
    absmax = np.empty(sizes.blocks, np.float32)
    quantize_bf16(bits, np.empty(sizes.packed, np.uint8), absmax)
    first_not_finite(bits)
    to_bf16(np.zeros(4, np.uint8), "F32", np.empty(1, np.uint16))


@cache
def _borders() -> NDArray[np.float32]:
    """Return the 15 borders between neighboring NF4 values, rounded as in bitsandbytes, and one larger border."""
    code = bnb.get_4bit_type("nf4", device="cpu")
    borders: NDArray[np.float32] = ((code[:-1] + code[1:]) / 2).numpy()
    return np.append(borders, np.float32(2.0))


@cache
def _bf16_of_f16() -> NDArray[np.uint16]:
    """Return for each f16 bit pattern the bf16 pattern that torch rounds it to."""
    halves = torch.from_numpy(np.arange(2**16, dtype=np.uint16)).view(torch.float16)
    table: NDArray[np.uint16] = halves.to(torch.bfloat16).view(torch.uint16).numpy()
    return table


# In the loops below every intermediate value is cast: numba widens sums of small integers to 64 bits, and a vector
# of 16-bit lanes handles four times as many.


@numba.njit(nogil=True, boundscheck=False, cache=True)
def _largest_magnitude(bits: NDArray[np.uint16]) -> np.uint16:
    largest = np.uint16(0)
    for i in range(bits.size):
        magnitude = bits[i] & np.uint16(0x7FFF)
        largest = magnitude if magnitude > largest else largest  # noqa: FURB136 -- max() would widen the type
    return largest


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _quantize_blocks(
    weights: NDArray[np.uint16],
    borders: NDArray[np.float32],
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
) -> None:
    """Quantize whole blocks by comparing bit patterns as integers, 16 at a time.

    bitsandbytes counts the borders below weight / absmax. The division is monotone, so each block and border has a
    last bf16 pattern that is not above the border. It is found from border * absmax. Rounding errors move it by less
    than one step of bf16, so the two neighbors are tested with bitsandbytes' own arithmetic.
    """
    keys = np.empty(64, np.int16)
    last_below = np.empty(16, np.int16)
    codes = np.empty(64, np.int16)
    pairs = codes.view(np.uint32)
    for block in range(absmax.shape[0]):
        bits = weights[block * 64 : block * 64 + 64]
        largest = np.uint16(0)
        for i in range(64):
            magnitude = bits[i] & np.uint16(0x7FFF)
            largest = magnitude if magnitude > largest else largest  # noqa: FURB136 -- max() would widen the type
        scale = np.uint32(np.uint32(largest) << np.uint32(16)).view(np.float32)
        absmax[block] = scale
        for i in range(64):
            # Sign and magnitude become a two's complement number of the same order; both zeros become 0.
            signed = np.int16(bits[i])
            negative = np.int16(signed >> np.int16(15))
            keys[i] = np.int16((np.int16(signed & np.int16(0x7FFF)) ^ negative) - negative)
        scale = max(scale, _SMALLEST_SCALE)
        inverse = np.float32(1.0) / scale
        for j in range(16):
            border = borders[j]
            near = np.float32(border * scale).view(np.int32)
            sign = np.int32(near >> np.int32(31))
            # The key at or next below border * scale.
            lower = np.int32(np.int32(np.int32(near & np.int32(0x7FFFFFFF)) >> np.int32(16)) ^ sign)
            upper = np.int32(lower + np.int32(1))
            sign = np.int32(lower >> np.int32(31))
            magnitude = np.int32(np.int32(lower ^ sign) - sign)
            lower_value = np.int32(
                np.int32(magnitude << np.int32(16)) | np.int32(sign & np.int32(-(2**31)))
            ).view(np.float32)
            sign = np.int32(upper >> np.int32(31))
            magnitude = np.int32(np.int32(upper ^ sign) - sign)
            upper_value = np.int32(
                np.int32(magnitude << np.int32(16)) | np.int32(sign & np.int32(-(2**31)))
            ).view(np.float32)
            last = np.int32(upper - np.int32(np.float32(lower_value * inverse) > border))
            last_below[j] = np.int16(last - np.int32(np.float32(upper_value * inverse) > border))
        for i in range(64):
            key = keys[i]
            code = np.int16(0)
            for j in range(15):
                code = np.int16(code + np.int16(key > last_below[j]))
            codes[i] = code
        for i in range(32):
            pair = pairs[i]
            packed[block * 32 + i] = np.uint8((pair << np.uint32(4)) | (pair >> np.uint32(16)))


@numba.njit(nogil=True, boundscheck=False, fastmath=False, cache=True)
def _quantize_tail(
    weights: NDArray[np.uint16],
    borders: NDArray[np.float32],
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
) -> None:
    """Quantize a last block of fewer than 64 weights, which bitsandbytes scales by division."""
    largest = _largest_magnitude(weights)
    # Written so that a scale that is not a number stays one.
    scale = np.uint32(np.uint32(largest) << np.uint32(16)).view(np.float32)
    if scale < _SMALLEST_SCALE:  # noqa: PLR1730 -- max() may drop what is not a number
        scale = _SMALLEST_SCALE
    absmax[0] = scale
    for i in range(packed.size):
        byte = np.uint8(0)
        for place in range(2):
            scaled = np.float32(0.0)
            if 2 * i + place < weights.size:
                bits = np.uint32(np.uint32(weights[2 * i + place]) << np.uint32(16))
                scaled = np.float32(bits.view(np.float32) / scale)
            code = np.uint8(0)
            for j in range(15):
                code = np.uint8(code + np.uint8(scaled > borders[j]))
            byte = np.uint8(np.uint8(byte << np.uint8(4)) | code)
        packed[i] = byte


@numba.njit(nogil=True, boundscheck=False, cache=True)
def _round_f32(source: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    for i in range(source.size):
        bits = source[i]
        upper = np.uint32(bits >> np.uint32(16))
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + np.uint32(upper & np.uint32(1)))
        # Not-a-number must stay one: rounding could carry into the sign.
        not_a_number = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(0x7FC0) if not_a_number else np.uint16(rounded >> np.uint32(16))
