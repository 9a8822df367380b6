"""Removal of what a cluster leaves outside its namespaces: its cgroups and its state folder."""

from __future__ import annotations

import contextlib
import shutil

from devcluster import cgroups
from devcluster.layout import STATE_ROOT, Layout


def remove(layout: Layout, *, keep_logs: bool = False) -> None:
    """Remove the cgroups and the state of a cluster none of whose processes lives any more; the caller holds its lock.

    With `keep_logs` the folder `log` stays, so that the end of a cluster can be understood; the next `up` or `down` removes it.
    Raises DevClusterError when a cgroup still holds processes.
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
    """Remove the lock file, and the folder of all clusters when this was the last one; the caller holds the lock."""
    layout.lock.unlink(missing_ok=True)
    # Not empty means that another cluster uses it.
    with contextlib.suppress(OSError):
        STATE_ROOT.rmdir()
