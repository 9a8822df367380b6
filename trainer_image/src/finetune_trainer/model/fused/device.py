"""The kernels that this process has for its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from finetune_trainer.model.fused.layers import KernelSet


@dataclass(frozen=True)
class DeviceKernels:
    """The kernels of a `device`, or why there are none, and the compute capability of a GPU."""

    device: str
    kernels: KernelSet | None = None
    missing: str | None = None
    capability: tuple[int, int] | None = None


def device_kernels(device: str) -> DeviceKernels:
    """Return the kernels for `device` ("cuda" or "cpu")."""
    if device != "cuda":
        return DeviceKernels(device)
    capability = torch.cuda.get_device_capability()
    try:
        from finetune_trainer.model.fused.triton_kernels import TritonKernels  # noqa: PLC0415 -- Triton may be missing
    except Exception as error:  # noqa: BLE001 -- no package must end a run that does without it
        return DeviceKernels(
            device, None, f"Triton cannot be used: {type(error).__name__}: {str(error)[:120]}", capability
        )
    return DeviceKernels(device, TritonKernels(), None, capability)
