"""Cgroups that contain a cluster's pods, in every hierarchy of cgroup v1, cgroup v2, or both."""

from __future__ import annotations

import os
import time
from pathlib import Path

from devcluster.errors import DevClusterError

_REMOVAL_SECONDS = 10.0


def hierarchies() -> list[Path]:
    """Return the mount points of all cgroup hierarchies of this machine, sorted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Fields after " - ": type of the file system, source, options; the fifth field before it is the mount point.
    split = [line.split(" - ") for line in lines]
    return sorted(
        {Path(left.split()[4]) for left, right in split if right.split()[0] in ("cgroup", "cgroup2")}
    )


def create(name: str) -> None:
    """Create the cgroup `name` at the top of every hierarchy: the kubelet needs an existing root."""
    for hierarchy in hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        # A cpuset of cgroup v1 starts without processors and memory nodes and rejects tasks until it has some.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            own, parent = folder / setting, hierarchy / setting
            if own.exists() and parent.exists() and not own.read_text().strip():
                own.write_text(parent.read_text())


def remove(name: str) -> None:
    """Remove the cgroup `name` and those below it from every hierarchy that has it.

    After a process ends, the kernel needs a moment until its cgroup counts as empty. Raises DevClusterError if a cgroup
    stays busy, which means that a process still runs in it.
    """
    deadline = time.monotonic() + _REMOVAL_SECONDS
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            while True:
                try:
                    Path(folder).rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise DevClusterError(
                            f"the cgroup {folder} must be empty, found: {error.strerror}; see its cgroup.procs"
                        ) from error
                    time.sleep(0.02)
