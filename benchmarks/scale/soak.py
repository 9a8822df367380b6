"""The operator under churn for a bounded time, and the growth of its memory.

Jobs are created at a constant rate, live through three stages, and are deleted some time after their end.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import running
from benchmarks.scale.lives import Ended
from benchmarks.scale.load import Load, beside
from benchmarks.scale.operator_process import Limits, operating

RESAMPLES = 1000
KEPT = 200
"""Jobs that stay; older ones are deleted."""


async def soak(
    folder: Path, minutes: float, jobs_a_second: float, namespaces: int, limits: Limits, *, gpus: int
) -> dict[str, Any]:
    """Keep up the churn for `minutes`; returns the slope of the operator's memory after the first third."""
    with running(folder) as plane:
        plane.run_pods(gpus=gpus, seconds=1.0, train_seconds=5.0)
        with operating(plane, limits) as operator:
            async with Load.connected(plane.kubeconfig("admin")) as load:
                await load.create_namespaces(namespaces)
                operator.await_idle(60)
                ended = Ended(operator)
                before = operator.program.cpu_seconds
                began = time.monotonic()
                number = 0
                async with beside(ended.sample()):
                    while (now := time.monotonic() - began) < minutes * 60:
                        await load.create_job(number, namespaces)
                        if number >= KEPT:
                            await load.delete_job(number - KEPT, namespaces)
                        number += 1
                        plane.check()
                        operator.program.check()
                        await asyncio.sleep(max(number / jobs_a_second - now, 0.0))
                sizes = [size / 2**20 for size in ended.resident]
                settled = sizes[len(sizes) // 3 :]
                an_hour = 3600 * len(sizes) / (minutes * 60)
                assert len(settled) >= 2, "a soak must last a minute at least; give a larger --soak"
                return {
                    "measurement": "soak",
                    "minutes": minutes,
                    "jobs": number,
                    "operatorCpuSeconds": round(operator.program.cpu_seconds - before, 1),
                    "firstMegabytes": round(settled[0], 1),
                    "lastMegabytes": round(settled[-1], 1),
                    "samples": len(settled),
                    "megabytesAnHour": round(slope(settled) * an_hour, 2),
                    "megabytesAnHour95": [round(bound * an_hour, 2) for bound in slope_interval(settled)],
                }


def slope_interval(values: list[float]) -> tuple[float, float]:
    """The interval that holds the slope with a probability of 95 %, for one step.

    Memory changes in bursts, so neighboring values are alike. Blocks of residuals are drawn with replacement, each as long
    as a tenth of the values (block bootstrap, Künsch 1989).
    """
    count = len(values)
    rise, mean = slope(values), sum(values) / count
    line = [mean + rise * (place - (count - 1) / 2) for place in range(count)]
    residuals = [value - expected for value, expected in zip(values, line, strict=True)]
    block = max(count // 10, 1)
    draw = random.Random(count)  # noqa: S311 -- a sample, not a secret
    slopes = []
    for _ in range(RESAMPLES):
        drawn: list[float] = []
        while len(drawn) < count:
            start = draw.randrange(count - block + 1)
            drawn += residuals[start : start + block]
        slopes.append(rise + slope(drawn[:count]))
    slopes.sort()
    return slopes[round(0.025 * (RESAMPLES - 1))], slopes[round(0.975 * (RESAMPLES - 1))]


def slope(values: list[float]) -> float:
    """The least-squares slope of equidistant values, for one step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return above / sum((place - middle) ** 2 for place in range(len(values)))
