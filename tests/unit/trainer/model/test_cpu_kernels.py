from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from finetune_trainer.model.cpu_kernels import WholeBlocks, mend_cpu_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [16, 32, 48, 64, 72, 80, 96, 136, 160, 192, 224, 250, 576])
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_dequantized_values_are_those_of_their_own_blocks(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    """The processor of this machine decides which kernel runs."""
    mend_cpu_kernels()
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    codes = packed.flatten().to(torch.int64)
    values = state.code[torch.stack((codes >> 4, codes & 15), dim=1).flatten()][: weight.numel()]
    expected = values * state.absmax.float().repeat_interleave(64)[: weight.numel()]
    found = dequantize_4bit(packed, state).flatten()
    assert torch.allclose(found.float(), expected, rtol=2**-8, atol=1e-6)


class Library:
    """A kernel that is right for rows of whole blocks, and that records their numbers and lengths."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def cdequantize_blockwise_cpu_nf4_fp32(
        self, packed: Any, scales: Any, out: Any, block: Any, rows: Any, columns: Any
    ) -> None:
        self.calls.append((rows.value, columns.value))
        assert columns.value % block.value == 0
        count = rows.value * columns.value
        source = (ctypes.c_uint8 * (count // 2)).from_address(packed.value)
        factors = (ctypes.c_float * (count // block.value)).from_address(scales.value)
        target = (ctypes.c_float * count).from_address(out.value)
        for place in range(count):
            code = source[place // 2] >> 4 if place % 2 == 0 else source[place // 2] & 15
            target[place] = code * factors[place // block.value]

    def cdequantize_blockwise_cpu_fp32(self) -> str:
        return "8 bits"


@pytest.mark.parametrize(
    ("rows", "columns", "calls"),
    [
        (3, 96, [(1, 256), (1, 64)]),
        (4, 96, [(1, 384)]),
        (4, 128, [(4, 128)]),
        (1, 16, [(1, 64)]),
        (5, 72, [(1, 320), (1, 64)]),
    ],
)
def test_rows_of_partial_blocks_are_joined_and_nothing_is_written_behind_them(
    rows: int, columns: int, calls: list[tuple[int, int]]
) -> None:
    library, count = Library(), rows * columns
    packed = torch.randint(
        0, 256, (count // 2,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    scales = torch.arange(1.0, 2.0 + count // 64)
    out = torch.full((count + 64,), -1.0)
    pointers = (ctypes.c_void_p(each.data_ptr()) for each in (packed, scales, out))
    numbers = (ctypes.c_longlong(each) for each in (64, rows, columns))
    WholeBlocks(library).cdequantize_blockwise_cpu_nf4_fp32(*pointers, *numbers)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().float()
    assert torch.equal(out[:count], codes * scales.repeat_interleave(64)[:count])
    assert torch.equal(out[count:], torch.full((64,), -1.0))
    assert library.calls == calls
    assert WholeBlocks(library).cdequantize_blockwise_cpu_fp32() == "8 bits"
