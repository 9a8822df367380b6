"""The operator under churn for a bounded time, and the growth of its memory.

Jobs are created at a constant rate, live through three stages, and are deleted some time after their end.

The operator remembers a bounded number of things for a while, such as specs that it has parsed. Until each of these
caches is full, its memory grows, and that says nothing about the next hour. So growth is measured from there on.
"""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

from finetune_operator.api import stored
from finetune_operator.cluster import tombstones

from benchmarks.scale.control_plane import running
from benchmarks.scale.lives import SAMPLE_SECONDS, Ended
from benchmarks.scale.load import Load, beside
from benchmarks.scale.operator_process import Limits, operating

BATCHES = 10
QUANTILE = 2.306
"""The 97.5 % quantile of Student's distribution with BATCHES - 2 degrees of freedom."""
KEPT = 200
"""Jobs that stay; older ones are deleted."""
OBJECTS = 8
"""Objects of one life: the FineTuneJob, its claim, and a Job and a pod of each stage."""
WARM_UP = KEPT + max(stored.REMEMBERED, tombstones.REMEMBERED // OBJECTS)
"""Jobs after which every cache is full: each job has a spec of its own, and its objects have been deleted."""


async def soak(
    folder: Path, minutes: float, jobs_a_second: float, namespaces: int, limits: Limits, *, gpus: int
) -> dict[str, Any]:
    """Keep up the churn for `minutes`; returns the slope of the operator's memory once all caches are full.

    A run of fewer jobs tells the slope after its first third, and says that caches were still filling.
    """
    with running(folder) as plane:
        plane.run_pods(gpus=gpus, seconds=1.0, train_seconds=5.0)
        with operating(plane, limits) as operator:
            async with Load.connected(plane.kubeconfig("admin")) as load:
                await load.create_namespaces(namespaces)
                operator.await_idle(60)
                ended = Ended(operator, min(SAMPLE_SECONDS, minutes))
                before = operator.program.cpu_seconds
                began = time.monotonic()
                number = warm = 0
                async with beside(ended.sample()):
                    while (now := time.monotonic() - began) < minutes * 60:
                        await load.create_job(number, namespaces)
                        if number >= KEPT:
                            await load.delete_job(number - KEPT, namespaces)
                        number += 1
                        if number == WARM_UP:
                            warm = len(ended.resident)
                        plane.check()
                        operator.program.check()
                        await asyncio.sleep(max(number / jobs_a_second - now, 0.0))
                an_hour = 60 * len(ended.resident) / minutes
                return {
                    "measurement": "soak",
                    "minutes": minutes,
                    "jobs": number,
                    "operatorCpuSeconds": round(operator.program.cpu_seconds - before, 1),
                    **growth(ended.resident, warm, an_hour),
                    "anonymous": growth(ended.anonymous, warm, an_hour),
                }


def growth(sizes: list[int], warm: int, an_hour: float) -> dict[str, Any]:
    """What the samples of the memory in bytes show, `an_hour` of which are taken in an hour.

    All caches are full from sample `warm` on; 0 if they never are.
    """
    full = 0 < warm <= len(sizes) - BATCHES
    settled = [size / 2**20 for size in sizes[warm if full else len(sizes) // 3 :]]
    return {
        "cachesFull": full,
        "firstMegabytes": round(settled[0], 1),
        "lastMegabytes": round(settled[-1], 1),
        "tenthsMegabytes": [round(mean, 1) for mean in _means(settled)],
        "samples": len(settled),
        "megabytesAnHour": round(slope(settled) * an_hour, 2),
        "megabytesAnHour95": [round(bound * an_hour, 2) for bound in slope_interval(settled)],
    }


def slope_interval(values: list[float]) -> tuple[float, float]:
    """The interval that holds the slope with a probability of 95 %, for one step.

    Neighboring values are alike, and the usual interval would be too narrow. So it is that of the means of BATCHES runs of
    values, which are nearly independent. Raises ValueError for too few values.
    """
    length, means = len(values) // BATCHES, _means(values)
    rise, mean = slope(means), sum(means) / BATCHES
    middle = (BATCHES - 1) / 2
    squares = sum((each - mean - rise * (place - middle)) ** 2 for place, each in enumerate(means))
    spread = sum((place - middle) ** 2 for place in range(BATCHES))
    error = math.sqrt(squares / (BATCHES - 2) / spread)
    return (rise - QUANTILE * error) / length, (rise + QUANTILE * error) / length


def _means(values: list[float]) -> list[float]:
    """The mean of each of BATCHES runs of values. Raises ValueError for too few values."""
    length = len(values) // BATCHES
    if length == 0:
        raise ValueError(f"the slope needs at least {BATCHES} values, found {len(values)}")
    return [sum(values[start : start + length]) / length for start in range(0, BATCHES * length, length)]


def slope(values: list[float]) -> float:
    """The least-squares slope of equidistant values, for one step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return above / sum((place - middle) ** 2 for place in range(len(values)))
