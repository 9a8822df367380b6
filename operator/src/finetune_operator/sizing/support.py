"""Checks that a GPU can run a trainer image at all, whatever its memory."""

from __future__ import annotations

from finetune_operator.sizing.gpus.gpu import Gpu, Version
from finetune_operator.sizing.memory.stack import StackProfile


def unsupported(gpu: Gpu, stack: StackProfile) -> str | None:
    """Say why `gpu` cannot run the image of `stack`; None if it can, or if the facts are unknown.

    A driver runs every CUDA version of its own major version and all earlier ones (NVIDIA, CUDA Compatibility: minor
    version compatibility, since CUDA 11). An unknown property never excludes a GPU.
    """
    if gpu.vendor not in {stack.vendor, "Unknown"}:
        return f"trainer image {stack.name} supports {_vendor(stack.vendor)} GPUs only; {gpu.product} is from another vendor"
    capability, minimum = gpu.compute_capability, stack.minimum_compute_capability
    if capability is not None and capability < minimum:
        return (
            f"the trainer needs compute capability {_text(minimum)} or higher (native bfloat16), but "
            f"{gpu.product} has {_text(capability)}"
        )
    driver, image = gpu.driver_cuda, stack.cuda_version
    if stack.vendor == "Nvidia" and driver is not None and driver[0] < image[0]:
        return (
            f"the trainer image uses CUDA {_text(image)}, but the driver on this node supports CUDA {_text(driver)} at "
            f"most; install a driver for CUDA {image[0]}"
        )
    return None


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _vendor(vendor: str) -> str:
    return {"Nvidia": "NVIDIA", "Amd": "AMD"}.get(vendor, vendor)
