"""Mends bitsandbytes' dequantization on CPUs with AVX512, which is wrong for some widths.

The kernel of bitsandbytes 0.50 counts blocks anew in each row. If a row has a multiple of 16 values but not of the block
size, most values get the scale of another block. A training on such a CPU would then see other weights than those of the
checkpoint, and MERGE would refuse its result. One long row is right, and GPUs have kernels of their own.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from bitsandbytes.backends.cpu import ops

_PREFIXES = ("cdequantize_blockwise_cpu_nf4_", "cdequantize_blockwise_cpu_fp4_")
"""Those of 4 bits. The functions of 8 bits have other arguments."""
_BLOCK = 64
_COLUMNS = 96
"""A multiple of 16, but not of the block size."""
_ROWS = 4


class WholeBlocks:
    """The native library, whose dequantization takes rows of partial blocks as one long row."""

    def __init__(self, library: Any) -> None:
        """`library` has bitsandbytes' C functions."""
        self._library = library

    def __getattr__(self, name: str) -> Any:
        """Return a function of the library, or the mended one."""
        found = getattr(self._library, name)
        if not name.startswith(_PREFIXES):
            return found

        def dequantize(
            packed: Any,
            scales: Any,
            out: Any,
            block: Any,
            rows: ctypes.c_longlong,
            columns: ctypes.c_longlong,
        ) -> None:
            # One row is one thread, so rows of whole blocks stay as they are.
            if columns.value % block.value:
                rows, columns = ctypes.c_longlong(1), ctypes.c_longlong(rows.value * columns.value)
            found(packed, scales, out, block, rows, columns)

        return dequantize


@cache
def mend_cpu_kernels() -> None:
    """Replace the kernel if it is wrong here; a later bitsandbytes may have a right one."""
    module: Any = ops
    if _is_wrong():
        module.lib = WholeBlocks(module.lib)


def _is_wrong() -> bool:
    """Dequantize ones, so that each value is the scale of its block."""
    count = _ROWS * _COLUMNS
    scales = torch.arange(1.0, 1.0 + count // _BLOCK)
    ones = torch.full((count // 2, 1), 0xFF, dtype=torch.uint8)
    found = torch.ops.bitsandbytes.dequantize_4bit(
        ones, scales, _BLOCK, "nf4", (_ROWS, _COLUMNS), torch.float32
    )
    return not torch.equal(found.flatten(), scales.repeat_interleave(_BLOCK))
