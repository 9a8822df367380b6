"""Choose the device of a local run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TextIO

from finetune_operator.api.plan import Device

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")


def choose_device(
    requested: Literal["auto", "cuda", "cpu"], messages: TextIO, driver: Path = DRIVER_FOLDER
) -> Device:
    """The requested device; for `auto`, CUDA if `driver` (the NVIDIA driver's list of GPUs) shows a GPU, else the CPU.

    The choice and its reason are printed to `messages`, so a run on a CPU is never silent.
    """
    if requested != "auto":
        return requested
    found = sorted(path.name for path in driver.iterdir()) if driver.is_dir() else []
    if found:
        print(f"finetune: training on CUDA: the NVIDIA driver shows {len(found)} GPU(s)", file=messages)
        return "cuda"
    print(f"finetune: training on the CPU: no GPU in {driver}; --device cuda fails instead", file=messages)
    return "cpu"
