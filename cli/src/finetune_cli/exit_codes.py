"""Exit codes of every command. Those from 64 on are of sysexits.h; `docs/reference/cli.md` lists all."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """An exit code with its meaning."""

    meaning: str

    def __new__(cls, value: int, meaning: str = "") -> Self:
        """Return the member of `value` with its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    SUCCESS = (
        0,
        "The command did what it was asked to do. `watch`: every job succeeded. `plan`: the job fits.",
    )
    FAILED = 1, "`watch`: a job failed. `validate` and `verify`: there are findings."
    DOES_NOT_FIT = 2, "`plan`: the job does not fit."
    USAGE = 64, "The request is wrong: an option, a value, a file's content, or the state of a job."
    REJECTED = 65, "The API server rejects the object."
    NO_INPUT = 66, "The FineTuneJob does not exist, or `verify` cannot read the files."
    UNAVAILABLE = 69, "There is no cluster, it does not respond, or it has no FineTuneJob CRD."
    EXISTS = 73, "An object of this name exists."
    TIMEOUT = 75, "The time of `--timeout` is over."
    NO_PERMISSION = 77, "The user lacks a right in the cluster, or is not logged in."
    INTERRUPTED = 130, "Ctrl-C."
    BROKEN_PIPE = 141, "The reader of the output closed it."
