"""Where a stage leaves its end: the exit codes (contract/README.md) with the reasons for each, and the result's file."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from finetune_trainer.errors import Reason

TERMINATION_MESSAGE = Path("/dev/termination-log")
"""The file for the result that Kubernetes makes by default."""


class ExitCode(IntEnum):
    """Exit code of a stage's process."""

    SUCCEEDED = 0
    PERMANENT = 65
    RETRYABLE = 69
    GPU_OUT_OF_MEMORY = 71
    INTERRUPTED = 75


_OTHERS = {
    Reason.GPU_OUT_OF_MEMORY: ExitCode.GPU_OUT_OF_MEMORY,
    Reason.INTERNAL_ERROR: ExitCode.RETRYABLE,
    Reason.DATASET_UNAVAILABLE: ExitCode.RETRYABLE,
    Reason.MODEL_UNAVAILABLE: ExitCode.RETRYABLE,
    Reason.DESTINATION_UNAVAILABLE: ExitCode.RETRYABLE,
    Reason.INTERRUPTED: ExitCode.INTERRUPTED,
}


def exit_code(reason: Reason | None) -> ExitCode:
    """Exit code for a failure's reason, or for success (None).

    The table follows the classes in contract/reasons.json; a test holds the two equal. GpuOutOfMemory is permanent, and it
    has a code of its own.
    """
    if reason is None:
        return ExitCode.SUCCEEDED
    return _OTHERS.get(reason, ExitCode.PERMANENT)
