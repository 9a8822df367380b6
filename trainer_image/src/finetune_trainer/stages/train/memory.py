"""Measured GPU memory of a run: torch's counters, and the memory outside of torch's allocator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finetune_trainer.contract.result import MemoryResult


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment. The peaks are of this process so far; `free` and `total` are of the device."""

    allocated_peak: int
    reserved_peak: int
    reserved: int
    free: int
    total: int

    @property
    def outside(self) -> int:
        """Bytes outside of torch's allocator: context, workspaces, paged optimizer states, other processes."""
        return max(0, self.total - self.free - self.reserved)


def read() -> Reading | None:
    """Read the counters; None if this process uses no GPU."""
    if not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    return Reading(
        allocated_peak=torch.cuda.max_memory_allocated(),
        reserved_peak=torch.cuda.max_memory_reserved(),
        reserved=torch.cuda.memory_reserved(),
        free=free,
        total=total,
    )


def measured(loaded: Reading | None, ended: Reading | None) -> MemoryResult | None:
    """Return the `memory` member of the result from the readings after loading and at the end; None on a CPU.

    The device's peak is the allocator's peak plus the largest reading outside of it. The two may differ in time.
    """
    if ended is None:
        return None
    readings = [ended] if loaded is None else [loaded, ended]
    found = MemoryResult(
        allocated_bytes=ended.allocated_peak,
        reserved_bytes=ended.reserved_peak,
        device_bytes=min(ended.total, ended.reserved_peak + max(reading.outside for reading in readings)),
        usable_bytes=ended.total,
    )
    return found if loaded is None else found.model_copy(update={"load_bytes": loaded.allocated_peak})


def describe_full(reading: Reading | None) -> str:
    """Describe the content of the full memory in sentences, without the last full stop."""
    if reading is None:
        return "The memory was full before it could be measured"
    return (
        f"The GPU has {_gib(reading.total)} GiB. Tensors took at most {_gib(reading.allocated_peak)} GiB, the allocator "
        f"held {_gib(reading.reserved_peak)} GiB, and context and others took {_gib(reading.outside)} GiB"
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f}"
