"""Recognizes a device that is out of memory in everything that torch and its libraries raise for it."""

from __future__ import annotations

import re

import torch

from finetune_trainer.errors import chain_of

_CUDA_MEMORY_ALLOCATION = 2
"""cudaErrorMemoryAllocation and hipErrorOutOfMemory (driver_types.h, hip_runtime_api.h)."""

_SPELLINGS = re.compile(
    r"""
    # torch's allocator and its checks of the runtime and the driver; Triton when it loads a kernel; NCCL.
    \b (?: CUDA | HIP ) \b [^\n]{0,200} \b out\ of\ memory \b
    | CUDA_ERROR_OUT_OF_MEMORY | cudaErrorMemoryAllocation | hipErrorOutOfMemory
    # cuBLAS, cuSOLVER, cuSPARSE, cuFFT, and cuDNN up to version 8.
    | \b (?: CU | HIP ) (?: BLAS | SOLVER | SPARSE | FFT | DNN ) (?: _STATUS )? _ALLOC_FAILED \b
    | \b rocblas_status_memory_error \b
    # cuDNN since version 9 says where: its failures in host memory are no case of this.
    | CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    # A handle needs device memory, and a library that gets none says that it was not initialized. The device itself
    # works: torch creates these handles at the first use, after tensors are on the device. Any other call with this
    # status got a broken handle, which is a different failure.
    | \b CUBLAS_STATUS_NOT_INITIALIZED \b [^\n]{0,40} \b cublas (?: Lt )? Create
    | \b CUDNN_STATUS_NOT_INITIALIZED \b
    # bitsandbytes, and NCCL's warning before it returns "unhandled cuda error".
    | \b Error\ out\ of\ memory\ at\ line \b
    | \b Failed\ to\ CUDA\ (?: malloc | calloc ) \b
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_device_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, or an error that led to it, says that the device has too little memory.

    A failure that has a reason already (StageError) and host memory are no such cases. Neither is Triton's
    OutOfResources: it is about the registers and the shared memory of one kernel.
    """
    return any(_says_so(found) for found in chain_of(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        code = getattr(error, "error_code", None)
        if code is not None:
            return bool(code == _CUDA_MEMORY_ALLOCATION)
    # A MemoryError or an OSError is about the host.
    return not isinstance(error, MemoryError | OSError) and _SPELLINGS.search(str(error)) is not None
