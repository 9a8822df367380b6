"""The four conditions that show the state of a job, as one table: a row for each state, a column for each condition.

The meaning of the states is explained at `api.conditions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from finetune_operator.api.conditions import Condition, Truth
from finetune_operator.api.reasons import Reason


class JobState(StrEnum):
    """The state of a job."""

    PROGRESSING = "Progressing"
    """It runs, or waits for something that can come by itself."""
    STALLED = "Stalled"
    """No GPU or volume of the cluster suits it, or TRAIN's pod does not start. It is tried again by itself."""
    QUEUED = "Queued"
    """A queue holds the current stage until there is quota for it."""
    SUSPENDED = "Suspended"
    """The user has suspended it."""
    COMPLETED = "Completed"
    """It has succeeded."""
    FAILED = "Failed"
    """It has failed for good."""


@dataclass(frozen=True)
class Cell:
    """One condition's status in one state, with a fixed `reason` or, if that is None, the job's reason and message."""

    status: Truth
    reason: Reason | None = None


@dataclass(frozen=True)
class Entry:
    """One condition to write."""

    condition: Condition
    status: Truth
    reason: str
    message: str


# With the reason and message of the job:
_TRUE, _FALSE, _UNKNOWN = Cell(Truth.TRUE), Cell(Truth.FALSE), Cell(Truth.UNKNOWN)
# False, with a fixed reason:
_PROGRESSING = Cell(Truth.FALSE, Reason.PROGRESSING)
_RUNNING = Cell(Truth.FALSE, Reason.RUNNING)
_SUSPENDED = Cell(Truth.FALSE, Reason.SUSPENDED_BY_USER)
_FINISHED = Cell(Truth.FALSE, Reason.FINISHED)

COLUMNS = (Condition.SUCCEEDED, Condition.RECONCILING, Condition.STALLED, Condition.SUSPENDED)

# Not formatted: a table is read by its columns.
# fmt: off
TABLE: Mapping[JobState, tuple[Cell, Cell, Cell, Cell]] = {
    #                      Succeeded  Reconciling  Stalled       Suspended
    JobState.PROGRESSING: (_UNKNOWN,  _TRUE,       _PROGRESSING, _RUNNING),
    JobState.STALLED:     (_UNKNOWN,  _FALSE,      _TRUE,        _RUNNING),
    JobState.QUEUED:      (_UNKNOWN,  _TRUE,       _PROGRESSING, _TRUE),
    JobState.SUSPENDED:   (_UNKNOWN,  _FALSE,      _SUSPENDED,   _TRUE),
    JobState.COMPLETED:   (_TRUE,     _FINISHED,   _FINISHED,    _FINISHED),
    JobState.FAILED:      (_FALSE,    _FINISHED,   _TRUE,        _FINISHED),
}
# fmt: on


def conditions_of(state: JobState, reason: str, message: str = "") -> tuple[Entry, ...]:
    """The four conditions of a job in `state`, for this `reason` and with this `message`."""
    return tuple(
        Entry(condition, cell.status, reason, message)
        if cell.reason is None
        else Entry(condition, cell.status, cell.reason, "")
        for condition, cell in zip(COLUMNS, TABLE[state], strict=True)
    )
