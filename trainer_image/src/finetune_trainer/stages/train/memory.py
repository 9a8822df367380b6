"""Measured GPU memory of a run: torch's counters, and the memory outside of torch's allocator."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

import torch

from finetune_trainer.contract.train_result import MemoryResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment. The peaks are of this process so far; `free` and `total` are of the device.

    Both are None if the device cannot be asked: after some errors, every call to it fails.
    """

    allocated_peak: int
    reserved_peak: int
    reserved: int
    free: int | None
    total: int | None

    @property
    def outside(self) -> int:
        """Bytes outside of torch's allocator: context, workspaces, paged optimizer states, other processes.

        0 if the device cannot be asked.
        """
        if self.total is None or self.free is None:
            return 0
        return max(0, self.total - self.free - self.reserved)


def read() -> Reading | None:
    """Read the counters; None if this process uses no GPU. It never fails: it also measures what an error left."""
    if not torch.cuda.is_initialized():
        return None
    free, total = _device()
    return Reading(
        allocated_peak=torch.cuda.max_memory_allocated(),
        reserved_peak=torch.cuda.max_memory_reserved(),
        reserved=torch.cuda.memory_reserved(),
        free=free,
        total=total,
    )


def _device() -> tuple[int | None, int | None]:
    """Return the free bytes and all bytes of the device; torch's own counters need no device."""
    try:
        return torch.cuda.mem_get_info()
    except RuntimeError as error:
        _log.warning("the memory of the GPU cannot be read: %s", error)
        return None, None


def reset_peaks() -> None:
    """Forget the peaks, so that the next readings are those of the next rung."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def release() -> None:
    """Give everything back to the device that nothing refers to any more. It never fails."""
    gc.collect()
    if torch.cuda.is_initialized():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            _log.warning("the memory of the GPU cannot be freed: %s", error)


def measured(loaded: Reading | None, ended: Reading | None) -> MemoryResult | None:
    """Return the `memory` member of the result from the readings after loading and at the end; None on a CPU.

    The device's peak is the allocator's peak plus the largest reading outside of it. The two may differ in time.
    """
    if ended is None or ended.total is None:
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
    tensors = (
        f"Tensors took at most {_gib(reading.allocated_peak)} GiB, and the allocator held at most "
        f"{_gib(reading.reserved_peak)} GiB"
    )
    if reading.total is None:
        return f"{tensors}; the GPU itself does not answer"
    return f"The GPU has {_gib(reading.total)} GiB. {tensors}. Context and others took {_gib(reading.outside)} GiB"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f}"
