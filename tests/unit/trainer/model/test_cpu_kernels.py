from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops
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


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (4, 96), (5, 72), (7, 96), (33, 224)])
def test_nothing_is_written_behind_the_values(rows: int, columns: int) -> None:
    count = rows * columns
    packed = torch.full((count // 2,), 0xFF, dtype=torch.uint8)
    scales = torch.arange(1.0, 2.0 + count // 64)
    out = torch.full((count + 4096,), -1.0)
    library: Any = cpu_ops
    library = library.lib if isinstance(library.lib, WholeBlocks) else WholeBlocks(library.lib)
    pointers = (ctypes.c_void_p(each.data_ptr()) for each in (packed, scales, out))
    numbers = (ctypes.c_longlong(each) for each in (64, rows, columns))
    library.cdequantize_blockwise_cpu_nf4_fp32(*pointers, *numbers)
    assert torch.equal(out[:count], scales.repeat_interleave(64)[:count])
    assert torch.equal(out[count:], torch.full((4096,), -1.0))


class Library:
    """Records the rows and columns of the calls. It is here for processors whose own kernel is right."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def cdequantize_blockwise_cpu_nf4_fp32(self, *arguments: Any) -> None:
        self.calls.append((arguments[4].value, arguments[5].value))

    def cdequantize_blockwise_cpu_fp32(self) -> str:
        return "8 bits"


def test_only_rows_of_partial_blocks_are_joined() -> None:
    library = Library()
    mended = WholeBlocks(library)
    for rows, columns in ((3, 96), (4, 128), (1, 64), (5, 16)):
        numbers = (ctypes.c_longlong(each) for each in (64, rows, columns))
        mended.cdequantize_blockwise_cpu_nf4_fp32(None, None, None, *numbers)
    assert library.calls == [(1, 288), (4, 128), (1, 64), (1, 80)]
    assert mended.cdequantize_blockwise_cpu_fp32() == "8 bits"
