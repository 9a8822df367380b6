"""Finds the process of an operator's replica on this machine, and stops it for a while."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.e2e.machine import Process, descendants

MODULE = b"finetune_operator"


def find_replica(pod: str) -> Process:
    """The process of the replica in the pod of this name, in whatever namespace it runs."""
    found = [pid for pid in map(_pid, Path("/proc").iterdir()) if pid and _is_replica(pid, pod)]
    if len(found) != 1:
        raise AssertionError(f"one process must be the operator of pod {pod}, found {found}")
    (process,) = (each for each in descendants(found[0]) if each.pid == found[0])
    return process


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """Stop a process with SIGSTOP for the duration of a `with` block."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # The kubelet may have ended it meanwhile.
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def _pid(entry: Path) -> int:
    return int(entry.name) if entry.name.isdigit() else 0


def _is_replica(pid: int, pod: str) -> bool:
    try:
        if MODULE not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return False
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"POD_NAME={pod}".encode() in variables
