"""A host without memory is recognized by errors that the libraries themselves raise, and nothing else is."""

from __future__ import annotations

import errno
import mmap
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.host_memory import is_host_out_of_memory

_TOO_MUCH = 1 << 60
"""Bytes that no address space has."""
REAL: dict[str, Callable[[], object]] = {
    "Python": lambda: bytearray(_TOO_MUCH),
    "numpy": lambda: np.empty(_TOO_MUCH, np.uint8),
    "torch": lambda: torch.empty(_TOO_MUCH, dtype=torch.uint8),
    "Arrow": lambda: pa.allocate_buffer(_TOO_MUCH),
    "the system": lambda: mmap.mmap(-1, 1 << 62),
}
SPELLINGS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at CPUAllocator.cpp:64] . DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("unable to mmap 4976698672 bytes from file </workspace/model>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Failed to CUDA host alloc 4194304 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("MemoryError: Unable to allocate 8.00 EiB\nin a process that proves rows:"),
    RuntimeError("zstd decompress error: Allocation error : not enough memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory"),
    ImportError("libtorch_cuda.so: failed to map segment from shared object"),
]
OTHERS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOSPC, "No space left on device"),
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object: Operation not permitted"),
    ValueError("the rows must fit in memory"),
    zlib.error("Error -3 while decompressing data: incorrect header check"),
    KeyError("MemoryErrors"),
]


@pytest.mark.parametrize("allocate", REAL.values(), ids=REAL.keys())
def test_what_the_libraries_raise_is_recognized(allocate: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError, OSError)) as caught:
        allocate()
    assert is_host_out_of_memory(caught.value)


@pytest.mark.parametrize("error", SPELLINGS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_every_spelling_of_a_host_without_memory_is_recognized(error: BaseException) -> None:
    assert is_host_out_of_memory(error)
    assert is_host_out_of_memory(_caused(RuntimeError("the step failed"), error))


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_other_failures_and_full_devices_are_not_a_host_without_memory(error: BaseException) -> None:
    assert not is_host_out_of_memory(error)


@pytest.mark.parametrize("reason", Reason)
def test_a_file_that_memory_did_not_let_open_is_named_by_that(reason: Reason) -> None:
    """Code around files takes every OSError for a failure of the file. Some reasons are right in any case."""
    right = {
        Reason.INTERRUPTED,
        Reason.GPU_OUT_OF_MEMORY,
        Reason.HOST_OUT_OF_MEMORY,
        Reason.CHAT_TEMPLATE_UNPROVABLE,
    }
    cause = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert is_host_out_of_memory(_caused(StageError(reason, "unreadable"), cause)) is (reason not in right)
    assert not is_host_out_of_memory(_caused(StageError(reason, "unreadable"), OSError(errno.EIO, "broken")))
    assert not is_host_out_of_memory(StageError(reason, "it needs more memory: MemoryError"))


def _caused(error: Any, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error
