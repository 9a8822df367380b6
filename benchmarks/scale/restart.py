"""A start of the operator in a cluster with many FineTuneJobs that have ended: time, memory and writes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import running
from benchmarks.scale.load import Load, namespace_of
from benchmarks.scale.loop_gaps import read_gaps
from benchmarks.scale.operator_process import Limits, operating
from benchmarks.scale.prefill import ended_status, prefill


async def restart(
    folder: Path, jobs: int, namespaces: int, limits: Limits, *, single: bool = False
) -> dict[str, Any]:
    """Start an operator beside `jobs` that have ended; returns the seconds until it works, and what it holds.

    It leads when it may decide about every job that has not ended. It is filled when it knows all others, too, and idle
    when nothing is left to do after that.

    With `single`, it serves the namespaces one by one, as with the chart's watchNamespaces.
    """
    if single:
        names = tuple(namespace_of(number, namespaces) for number in range(namespaces))
        limits = replace(limits, namespaces=names)
    with running(folder) as plane:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await prefill(plane, load, jobs, namespaces, ended_status())
        # It takes in what etcd has, which costs it more than an operator ever does.
        plane.await_quiet(1800)
        before = plane.api_server.cpu_seconds
        began = time.monotonic()
        gaps = folder / "gaps.txt"
        with operating(plane, replace(limits, gaps=gaps)) as operator:
            operator.await_ready(600)
            leads = time.monotonic() - began
            early = plane.api_server.cpu_seconds - before, operator.program.cpu_seconds
            operator.await_filled(600)
            filled = time.monotonic() - began
            operator.await_idle(600)
            idle = time.monotonic() - began
            phases = operator.phases()
            assert phases == {"Succeeded": jobs}, phases
            return {
                "measurement": "restart",
                "limits": limits.name,
                "jobs": jobs,
                "namespacesOneByOne": len(limits.namespaces),
                "leadsSeconds": round(leads, 2),
                "filledSeconds": round(filled, 2),
                "idleSeconds": round(idle, 2),
                "operatorCpuSecondsUntilItLeads": round(early[1], 2),
                "apiServerCpuSecondsUntilItLeads": round(early[0], 2),
                "operatorCpuSeconds": round(operator.program.cpu_seconds, 2),
                "apiServerCpuSeconds": round(plane.api_server.cpu_seconds - before, 2),
                "largestLoopGapOwnSeconds": round(
                    max((gap.own_seconds for gap in read_gaps(gaps, began, time.monotonic())), default=0.0), 3
                ),
                "operatorMegabytes": operator.program.resident_bytes >> 20,
                "operatorPeakMegabytes": operator.program.peak_bytes >> 20,
                "writes": sum(operator.writes().values()),
            }
