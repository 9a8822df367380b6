"""Whether a GPU can run a trainer image at all, whatever its memory."""

from __future__ import annotations

from finetune_operator.sizing.gpus.gpu import Gpu, Version
from finetune_operator.sizing.memory.stack import StackProfile


def unsupported(gpu: Gpu, stack: StackProfile) -> str | None:
    """Say why `gpu` cannot run the image of `stack`; None if it can, or if nothing tells.

    A driver runs every CUDA version of its own major version and all earlier ones (NVIDIA, CUDA Compatibility: minor
    version compatibility, since CUDA 11). What is not known of a GPU never makes it unfit.
    """
    if gpu.vendor not in {stack.vendor, "Unknown"}:
        return f"the trainer image {stack.name} is built for GPUs of {_vendor(stack.vendor)}, {gpu.product} is none"
    capability, minimum = gpu.compute_capability, stack.minimum_compute_capability
    if capability is not None and capability < minimum:
        return (
            f"the trainer needs compute capability {_text(minimum)} or more (native bfloat16), "
            f"{gpu.product} has {_text(capability)}"
        )
    driver, image = gpu.driver_cuda, stack.cuda_version
    if stack.vendor == "Nvidia" and driver is not None and driver[0] < image[0]:
        return (
            f"the trainer image uses CUDA {_text(image)}, the driver on this node runs up to CUDA {_text(driver)}; "
            f"a driver for CUDA {image[0]} is needed"
        )
    return None


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _vendor(vendor: str) -> str:
    return {"Nvidia": "NVIDIA", "Amd": "AMD"}.get(vendor, vendor)
