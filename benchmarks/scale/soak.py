"""The operator under churn for a bounded time, and the growth of its memory.

Jobs are created at a constant rate, live through three stages, and are deleted some time after their end.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import running
from benchmarks.scale.lives import Ended
from benchmarks.scale.load import Load, beside
from benchmarks.scale.operator_process import Limits, operating

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
                assert len(settled) >= 2, "a soak must last a minute at least; give a larger --soak"
                return {
                    "measurement": "soak",
                    "minutes": minutes,
                    "jobs": number,
                    "operatorCpuSeconds": round(operator.program.cpu_seconds - before, 1),
                    "firstMegabytes": round(settled[0], 1),
                    "lastMegabytes": round(settled[-1], 1),
                    "megabytesAnHour": round(slope(settled) * 3600 * len(sizes) / (minutes * 60), 2),
                }


def slope(values: list[float]) -> float:
    """The least-squares slope of equidistant values, for one step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return above / sum((place - middle) ** 2 for place in range(len(values)))
