"""Counts the bytes of live tensors while a program runs on fake tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# torch's CUDA allocator hands out multiples of this (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize).
_BLOCK = 512
# bitsandbytes multiplies by the packed weight directly for at most this many rows (backends/cuda/ops.py). For more rows,
# and on some GPUs also for fewer, it writes the dequantized weight first.
_FUSED_ROWS = 1536


def rounded(size: int) -> int:
    """Return the bytes that the allocator reserves for a tensor of `size` bytes."""
    return -(-size // _BLOCK) * _BLOCK


class Allocations(TorchDispatchMode):
    """Tracks the storages that operations return, from creation to release, and their peak total size.

    Each phase has a separate peak. `starts` has the total when each phase began last. A fake run does not
    enter bitsandbytes' fused operation, so the allocations inside it are added to the peak by bitsandbytes' rule.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation
        self.current = 0
        self.peaks: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self._phase = ""
        self._live: dict[int, int] = {}

    def enter(self, phase: str) -> None:
        """Start a phase; live storages count toward its peak."""
        self._phase = phase
        self.starts[phase] = self.current
        self._note(0)

    def forget_peaks(self) -> None:
        """Forget all phases, so that the next ones begin anew."""
        self.peaks.clear()
        self.starts.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        for item in tree_iter(out):
            if isinstance(item, torch.Tensor):
                self._add(item)
        if "gemm_4bit" in name:
            activations, (outputs, inputs) = args[0], args[2]
            if activations.numel() // activations.shape[-1] > _FUSED_ROWS:
                # The weight in 16 bits, and its block constants before and after adding the offset.
                constants = rounded(outputs * inputs // 64 * 4)
                weight = rounded(outputs * inputs * activations.element_size())
                self._note(weight + 2 * constants)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or tensor.device.type == "meta":
            return
        size = rounded(storage.nbytes())
        self._live[key] = size
        self.current += size
        weakref.finalize(storage, self._free, key)
        self._note(0)

    def _free(self, key: int) -> None:
        self.current -= self._live.pop(key)

    def _note(self, extra: int) -> None:
        if self.current + extra > self.peaks.get(self._phase, -1):
            self.peaks[self._phase] = self.current + extra
