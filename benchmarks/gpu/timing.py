"""Times of a piece of work on the device."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.gpu.training import synchronize


def seconds_of(work: Callable[[], object], device: str, *, rounds: int, warm_up: int) -> list[float]:
    """Return the seconds of `rounds` rounds, shortest first, after `warm_up` others."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return sorted(times)
