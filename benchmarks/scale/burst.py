"""Many FineTuneJobs at once: the time from a job's acceptance to its first batch/v1 Job.

Only the API server and the operator run, so nothing else uses the CPUs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import running
from benchmarks.scale.load import BATCH_JOBS, METADATA, Load, beside, quantile, until
from benchmarks.scale.operator_process import Limits, operating

JOB_LABEL = "finetune.dev/job"


async def burst(folder: Path, jobs: int, namespaces: int, limits: Limits) -> dict[str, Any]:
    """Create `jobs` at once and return the distribution of the times in seconds, and what it costs."""
    seen: dict[str, float] = {}

    def see(kind: str, body: dict[str, Any], now: float) -> None:
        if kind == "ADDED":
            seen.setdefault(body["metadata"]["labels"][JOB_LABEL], now)

    with running(folder) as plane, operating(plane, limits) as operator:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await load.create_namespaces(namespaces)
            operator.await_idle(60)
            async with beside(load.watch(f"{BATCH_JOBS}?labelSelector={JOB_LABEL}", see, accept=METADATA)):
                before = (operator.program.cpu_seconds, plane.api_server.cpu_seconds)
                began = time.monotonic()
                accepted = await load.create_jobs(jobs, namespaces)
                created = time.monotonic() - began
                await until(lambda: len(seen) >= jobs, 600, lambda: f"{len(seen)} of {jobs} have a Job")
                whole = max(seen.values()) - began
            operator.await_idle(300)
            cpu = operator.program.cpu_seconds - before[0]
            api_cpu = plane.api_server.cpu_seconds - before[1]
            writes = operator.writes()
            waits = [max(seen[name] - accepted[name], 0.0) for name in accepted]
            return {
                "measurement": "burst",
                "limits": limits.name,
                "jobs": jobs,
                "p50Seconds": round(quantile(waits, 0.5), 2),
                "p99Seconds": round(quantile(waits, 0.99), 2),
                "createSeconds": round(created, 2),
                "wholeSeconds": round(whole, 2),
                "operatorCpuSeconds": round(cpu, 2),
                "apiServerCpuSeconds": round(api_cpu, 2),
                "writesOfAJob": round(sum(writes.values()) / jobs, 2),
                "operatorMegabytes": operator.program.peak_bytes >> 20,
            }
