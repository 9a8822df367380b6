"""Every spelling of a device that is out of memory is recognized, and nothing else is."""

from __future__ import annotations

import subprocess

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.out_of_memory import is_device_out_of_memory

_ASYNCHRONOUS = (
    "\nSearch for `cudaErrorMemoryAllocation' in the toolkit's documentation.\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)
DEVICE = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB"
    ),
    torch.OutOfMemoryError(),
    torch.AcceleratorError(f"CUDA error: out of memory{_ASYNCHRONOUS}"),
    RuntimeError(f"CUDA error: out of memory{_ASYNCHRONOUS}"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError(
        "Caught OutOfMemoryError in replica 0 on device 0.\nCUDA out of memory. Tried to allocate 2 MiB"
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError(
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes"
    ),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&handle)`"),
    RuntimeError("CUDA error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Error out of memory at line 90 in file /src/csrc/ops.cu"),
    RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError(
        "ncclUnhandledCudaError: Call to CUDA function failed.\nFailed to CUDA calloc async 608 bytes"
    ),
]
OTHERS = [
    MemoryError(),
    MemoryError("CUDA out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("out of resource: shared memory, Required: 98304, Hardware limit: 65536."),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx(handle, opa, opb, m, n, k)`"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle, opa, opb)`"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is out of shared memory"),
    RuntimeError("Failed to CUDA host alloc 4194304 bytes"),
    ValueError("the learning rate must be positive"),
    StageError(Reason.GPU_OUT_OF_MEMORY, "CUDA out of memory"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", DEVICE, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_every_spelling_of_a_full_device_is_recognized(error: BaseException) -> None:
    assert is_device_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_other_failures_and_host_memory_are_not_a_full_device(error: BaseException) -> None:
    assert not is_device_out_of_memory(error)


def test_the_error_of_the_host_allocator_is_not_a_full_device() -> None:
    """This error is torch's own, for more bytes than any address space has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert not is_device_out_of_memory(caught.value)


@pytest.mark.parametrize("code", [2, 719])
def test_the_code_of_an_accelerator_error_decides(code: int) -> None:
    """2 is cudaErrorMemoryAllocation, 719 a launch that failed."""
    error = torch.AcceleratorError("CUDA error: text of a driver in another language")
    error.error_code = code  # type: ignore[attr-defined]  # torch sets it, and its annotations lack it
    assert is_device_out_of_memory(error) is (code == 2)


def _failure(full: Exception, *, suppressed: bool) -> RuntimeError:
    """Return an error that is raised while `full` is handled."""
    try:
        try:
            raise full
        except type(full):
            if suppressed:
                raise RuntimeError("another") from None
            raise RuntimeError("generator didn't stop")  # noqa: B904 -- the implicit context is what is tested
    except RuntimeError as error:
        return error


def test_an_error_that_a_full_device_led_to_is_recognized() -> None:
    full = ValueError("CUDA out of memory")
    caused = RuntimeError("the step failed")
    caused.__cause__ = full
    assert is_device_out_of_memory(caused)
    assert is_device_out_of_memory(_failure(full, suppressed=False))
    assert is_device_out_of_memory(ExceptionGroup("two workers", [ValueError("one"), full]))


def test_a_handled_full_device_does_not_explain_a_later_failure() -> None:
    """`from None` says that the earlier error has nothing to do with it; a failure with a reason has its own."""
    full = ValueError("CUDA out of memory")
    assert not is_device_out_of_memory(_failure(full, suppressed=True))
    typed = StageError(Reason.INTERRUPTED, "stopped")
    typed.__cause__ = full
    assert not is_device_out_of_memory(typed)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_device_out_of_memory(first)
    assert not is_device_out_of_memory(subprocess.CalledProcessError(1, "nvidia-smi"))
