"""Exit codes of a stage (contract/README.md) and the reasons for each."""

from __future__ import annotations

from enum import IntEnum

from finetune_trainer.errors import Reason


class ExitCode(IntEnum):
    """Exit code of a stage's process."""

    SUCCEEDED = 0
    PERMANENT = 65
    RETRYABLE = 69
    INTERRUPTED = 75


_NOT_PERMANENT = {
    Reason.INTERNAL_ERROR: ExitCode.RETRYABLE,
    Reason.DATASET_UNAVAILABLE: ExitCode.RETRYABLE,
    Reason.MODEL_UNAVAILABLE: ExitCode.RETRYABLE,
    Reason.INTERRUPTED: ExitCode.INTERRUPTED,
}


def exit_code(reason: Reason | None) -> ExitCode:
    """Exit code for a failure's reason, or for success (None).

    The table follows the classes in contract/reasons.json; a test holds the two equal.
    """
    if reason is None:
        return ExitCode.SUCCEEDED
    return _NOT_PERMANENT.get(reason, ExitCode.PERMANENT)
