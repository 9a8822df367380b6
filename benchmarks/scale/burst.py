"""Many FineTuneJobs at once: the time from a job's acceptance to its first batch/v1 Job.

Only the API server and the operator run, so nothing else uses the CPUs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import running
from benchmarks.scale.load import FirstJobs, Load, until
from benchmarks.scale.operator_process import Limits, operating

JOB_LABEL = "finetune.dev/job"


async def burst(folder: Path, jobs: int, namespaces: int, limits: Limits) -> dict[str, Any]:
    """Create `jobs` at once and return the distribution of the times in seconds, and what it costs."""
    first = FirstJobs(JOB_LABEL)
    with running(folder) as plane, operating(plane, limits) as operator:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await load.create_namespaces(namespaces)
            operator.await_idle(60)
            async with first.watched(load):
                before = (operator.program.cpu_seconds, plane.api_server.cpu_seconds)
                began = time.monotonic()
                accepted = await load.create_jobs(jobs, namespaces)
                await until(
                    lambda: len(first.seen) >= jobs, 600, lambda: f"{len(first.seen)} of {jobs} have a Job"
                )
            operator.await_idle(300)
            cpu = operator.program.cpu_seconds - before[0]
            api_cpu = plane.api_server.cpu_seconds - before[1]
            writes = operator.writes()
            return {
                "measurement": "burst",
                "limits": limits.name,
                "jobs": jobs,
                **first.figures(accepted, began),
                "operatorCpuSeconds": round(cpu, 2),
                "apiServerCpuSeconds": round(api_cpu, 2),
                "writesOfAJob": round(sum(writes.values()) / jobs, 2),
                "operatorMegabytes": operator.program.peak_bytes >> 20,
            }
