"""Measurement 1: the software and its age, and the rates of the device that bound everything else."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.versions import installed_versions

_ROUNDS = 10


def run(case: str, context: Context) -> dict[str, Any]:
    """Return the values of one case."""
    return _software() if case == "software" else _device(context)


def _software() -> dict[str, Any]:
    from benchmarks.gpu.older_torch import adapt  # noqa: PLC0415 -- it loads torch

    return {
        "versions": installed_versions(),
        "python": platform.python_version(),
        "adaptations": adapt(),
        "processors": os.cpu_count(),
        "memoryBytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _device(context: Context) -> dict[str, Any]:
    import torch  # noqa: PLC0415 -- the first case must work without it
    from finetune_trainer.stages.train.ladder import this_device  # noqa: PLC0415 -- it loads torch

    if context.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("the machine must have a GPU that torch sees, found none; try --dry-run")
    found = this_device(context.device)
    return {
        "name": found.name,
        "memoryBytes": found.bytes,
        "driver": _driver(),
        "matrixSize": context.size.matrix,
        "matrixFlops": _matrix_flops(context.size.matrix, context.device),
        "copyBytesPerSecond": _copy_rate(context.size.copied_bytes, context.device),
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    """Return the driver's version; None without its command."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None


def _matrix_flops(size: int, device: str) -> float:
    """Return the FLOP/s of a product of two random bf16 matrices of `size` x `size`: the median of ten."""
    import torch  # noqa: PLC0415 -- see above

    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: one @ other, device)


def _copy_rate(size: int, device: str) -> float:
    """Return the bytes per second of a copy on the device, each read and written."""
    import torch  # noqa: PLC0415 -- see above

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the median seconds of `work` on the device."""
    from benchmarks.gpu.timing import seconds_of  # noqa: PLC0415 -- it loads torch

    return seconds_of(work, device, rounds=_ROUNDS, warm_up=3)[_ROUNDS // 2]
