"""When containers ended by containerd, which the kubelet tells in whole seconds only."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

_EXIT = re.compile(
    r"TaskExit\{ContainerID:(?P<container>[0-9a-f]{64}),ID:(?P<task>[0-9a-f]{64}),.*?ExitedAt:(?P<at>[^,]+),"
)
"""containerd 1 logs an exit so. The first process of a container has the container's name; others are those of `exec`."""
_EXIT_2 = re.compile(
    r"container_id:\W*(?P<container>[0-9a-f]{64})\W+id:\W*(?P<task>[0-9a-f]{64}).*?"
    r"exited_at:\{seconds:(?P<seconds>\d+)(?:\s+nanos:(?P<nanos>\d+))?\}"
)


def container_ends(log: Path) -> dict[str, float]:
    """Return the end of each container by its name, in seconds of `time.time`, from a log of containerd."""
    found = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if (old := _EXIT.search(line)) and old["container"] == old["task"]:
            found[old["container"]] = _seconds(old["at"])
        elif (new := _EXIT_2.search(line)) and new["container"] == new["task"]:
            found[new["container"]] = int(new["seconds"]) + int(new["nanos"] or 0) / 1e9
    return found


def _seconds(printed: str) -> float:
    """Return a time as Go prints it: `2026-11-30 21:20:11.123456789 +0000 UTC`."""
    day, clock, offset, *_ = printed.split()
    whole, _, part = clock.partition(".")
    return datetime.strptime(f"{day} {whole} {offset}", "%Y-%m-%d %H:%M:%S %z").timestamp() + float(
        f"0.{part or 0}"
    )
