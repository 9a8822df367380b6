"""How many CPU threads this container may use.

Libraries count the node's cores; with a cgroup limit that means many threads waiting for few cores.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Cores this process may be scheduled on, cut to the cgroup's CPU limit (rounded up), at least 1."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup_limit.read_text(encoding="ascii").split()
        limit = affinity if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        # No cgroup v2 here (a laptop, an old node): the affinity is all that is known.
        limit = affinity
    return max(1, min(affinity, limit))


def limit_threads(processors: int) -> None:
    """Tell numeric libraries the number of threads; must run before they are imported.

    Waiting threads sleep instead of spinning: where pods share cores, spinning ones hold up those that compute
    (measured on two cores with one neighbour: a small matrix product 24 ms spinning, 5 ms asleep).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(variable, str(processors))
