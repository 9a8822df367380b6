"""Recognizes that the host has no more memory, in everything that Python and its libraries raise for it."""

from __future__ import annotations

import errno
import os
import re

from finetune_trainer.errors import Reason, StageError, chain_of

_SPELLINGS = re.compile(
    rf"""
    # The system's own text, which libraries in C++ and Rust keep: torch that maps a file, safetensors.
    {re.escape(os.strerror(errno.ENOMEM))}
    # The dynamic loader, which names the system's error only in some versions. Other errors have other causes, such as a
    # mount without permission to execute.
    | \b failed[ ]to[ ]map[ ]segment[ ]from[ ]shared[ ]object (?! :)
    # torch's allocator for CPUs, and C++.
    | \b DefaultCPUAllocator: [^\n]{{0,40}} \b (?: can't[ ]allocate[ ]memory | not[ ]enough[ ]memory ) \b
    | \b std::bad_alloc \b
    # Pinned memory of the host, by CUDA's libraries.
    | \b Failed[ ]to[ ]CUDA[ ]host[ ]alloc \b
    | \b CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED \b
    # zstd; and an error of a worker process whose type cannot be sent.
    | \b Allocation[ ]error[ ]:[ ]not[ ]enough[ ]memory \b
    | ^ \w* MemoryError \b
    """,
    re.VERBOSE,
)
_OWN_CAUSES = frozenset(
    {Reason.INTERRUPTED, Reason.GPU_OUT_OF_MEMORY, Reason.HOST_OUT_OF_MEMORY, Reason.CHAT_TEMPLATE_UNPROVABLE}
)
"""Reasons that are right although memory ended: a template that multiplies a text without end is at fault itself."""


def is_host_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, or an error that led to it, says that the host has too little memory.

    Of a failure that has a reason, the error that it was raised from decides: code that expects errors of files names
    each of them by what it was doing.
    """
    if isinstance(error, StageError):
        cause = error.__cause__
        return error.reason not in _OWN_CAUSES and cause is not None and is_host_out_of_memory(cause)
    return any(_says_so(found) for found in chain_of(error))


def _says_so(error: BaseException) -> bool:
    # numpy's and Arrow's errors are subclasses of MemoryError.
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return _SPELLINGS.search(str(error)) is not None
