"""Which device a local run trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TextIO

Device = Literal["cuda", "cpu"]
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")


def choose_device(
    asked: Literal["auto", "cuda", "cpu"], messages: TextIO, driver: Path = DRIVER_FOLDER
) -> Device:
    """The device asked for; with `auto`, the one that `driver` (the NVIDIA driver's list of GPUs) shows.

    What was chosen and why goes to `messages`: a run on a CPU is never silent.
    """
    if asked != "auto":
        return asked
    found = sorted(path.name for path in driver.iterdir()) if driver.is_dir() else []
    if found:
        print(f"finetune: training on CUDA: the NVIDIA driver shows {len(found)} GPU(s)", file=messages)
        return "cuda"
    print(f"finetune: training on the CPU: no GPU in {driver}; --device cuda would refuse", file=messages)
    return "cpu"
