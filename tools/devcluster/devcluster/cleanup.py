"""Removes a cluster's traces outside its namespaces: its cgroups and its state folder."""

from __future__ import annotations

import contextlib
import shutil

from devcluster import cgroups
from devcluster.layout import STATE_ROOT, Layout


def remove(layout: Layout, *, keep_logs: bool = False) -> None:
    """Remove the cgroups and the state of a cluster after all its processes have ended; the caller holds its lock.

    With `keep_logs` the folder `log` stays, so that a crash can be analyzed; the next `up` or `down` removes it.
    Raises DevClusterError if a cgroup still holds processes.
    """
    cgroups.remove(layout.cgroup)
    if not layout.state.exists():
        return
    if not keep_logs:
        shutil.rmtree(layout.state)
        return
    for entry in layout.state.iterdir():
        if entry == layout.log.parent:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_lock(layout: Layout) -> None:
    """Remove the lock file, and after the last cluster also the folder of all clusters; the caller holds the lock."""
    layout.lock.unlink(missing_ok=True)
    # If it is not empty, another cluster uses it.
    with contextlib.suppress(OSError):
        STATE_ROOT.rmdir()
