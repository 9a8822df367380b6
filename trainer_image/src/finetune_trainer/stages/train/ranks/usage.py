"""What one rank takes: the time of its own passes, and the peaks of its memory."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_KIB = 1024


@dataclass(frozen=True)
class RankUsage:
    """Numbers of one rank.

    `seconds` is the time of its own passes of a step, without its wait for the others. `device_bytes` is the peak of its
    tensors on the GPU, 0 on a CPU, and `host_bytes` the peak of its resident memory. Both are of the process so far.
    """

    seconds: float
    device_bytes: int
    host_bytes: int

    @classmethod
    def read(cls, seconds: float) -> RankUsage:
        """Read the peaks of this process. Nothing waits for the device."""
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        return cls(seconds, device, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB)

    @classmethod
    def of(cls, numbers: Sequence[float]) -> RankUsage:
        """Return the usage with these `numbers`. Bytes stay exact as 64-bit floats up to 8 PiB."""
        seconds, device, host = numbers
        return cls(seconds, int(device), int(host))

    def numbers(self) -> tuple[float, float, float]:
        """Return the numbers in the order that `of` takes."""
        return self.seconds, self.device_bytes, self.host_bytes
