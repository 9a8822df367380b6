"""The logs that the attempts of all stages have left in the workspace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STAGES = {"probe": "Prepare", "prepare": "Prepare", "train": "Train", "merge": "Merge", "publish": "Merge"}
"""The stage of each log. The steps that hold credentials of destinations have logs of their own."""
_NAME = re.compile(rf"({'|'.join(_STAGES)})-(0|[1-9][0-9]{{0,5}})\.log")


@dataclass(frozen=True)
class StoredLog:
    """The log of one attempt. `step` is the stage in lower case, or `probe` or `publish`."""

    step: str
    attempt: int
    path: Path

    @property
    def stage(self) -> str:
        """The stage, as the contract names it."""
        return _STAGES[self.step]


@dataclass(frozen=True)
class LogExcerpt:
    """Whole lines of a log. `left_out` counts the bytes between `first` and `last`."""

    first: str
    last: str
    left_out: int
    size: int


def stored_logs(folder: Path) -> list[StoredLog]:
    """Return the logs of a folder in the order of stages, steps and attempts. Links and other names are no logs."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    found = [
        StoredLog(match[1], int(match[2]), path)
        for path in paths
        if (match := _NAME.fullmatch(path.name)) and path.is_file() and not path.is_symlink()
    ]
    order = list(_STAGES)
    return sorted(found, key=lambda log: (order.index(log.step), log.attempt))


def newest(logs: Sequence[StoredLog], count: int) -> list[StoredLog]:
    """Return at most `count` logs of each step, those of its last attempts, in the same order."""
    attempts = {log.step: sorted(each.attempt for each in logs if each.step == log.step) for log in logs}
    return [log for log in logs if log.attempt in attempts[log.step][-count:]]


def forget_old_logs(folder: Path, count: int = 20) -> None:
    """Delete all but the newest logs of each step: a job that is interrupted every few minutes must not fill its workspace.

    Raises OSError.
    """
    logs = stored_logs(folder)
    for log in set(logs) - set(newest(logs, count)):
        log.path.unlink(missing_ok=True)


def read_excerpt(path: Path, first: int, last: int) -> LogExcerpt:
    """Return whole lines from at most `first` bytes of the beginning and `last` bytes of the end. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= first + last:
            return LogExcerpt(file.read(first + last).decode("utf-8", "replace"), "", 0, size)
        head = file.read(first)
        file.seek(size - last)
        tail = file.read(last)
    head, tail = head[: head.rfind(b"\n") + 1], tail[tail.find(b"\n") + 1 :]
    left_out = size - len(head) - len(tail)
    return LogExcerpt(head.decode("utf-8", "replace"), tail.decode("utf-8", "replace"), left_out, size)
