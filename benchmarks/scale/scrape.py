"""A scrape of the metrics of many active FineTuneJobs: its time, and for how long it stops the operator's event loop.

Every scrape has a process of its own, and asks for gzip as Prometheus does. A probe of the kubelet is sent meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.scale.control_plane import running
from benchmarks.scale.load import Load, quantile
from benchmarks.scale.loop_gaps import Gap, read_gaps
from benchmarks.scale.operator_process import Limits, Operator, operating
from benchmarks.scale.prefill import new_status, prefill

PROBE_SECONDS = 0.002
SETTLE_SECONDS = 30.0
"""Time after a start in which the decisions about all jobs are made."""
_SCRAPER = """
import gzip, http.client, sys, time
began = time.monotonic()
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
response = connection.getresponse()
body = response.read()
seconds = time.monotonic() - began
packed = response.getheader("Content-Encoding") == "gzip"
print(began, seconds, len(gzip.decompress(body) if packed else body))
"""


async def scrape(folder: Path, jobs: int, namespaces: int, limits: Limits, scrapes: int) -> dict[str, Any]:
    """Scrape an operator with `jobs` active ones, and once more after each scrape."""
    with running(folder) as plane:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await prefill(plane, load, jobs, namespaces, new_status(), suspend=True)
        gaps = folder / "gaps.txt"
        with operating(plane, replace(limits, gaps=gaps)) as operator:
            await _until_ready(operator)
            await asyncio.sleep(SETTLE_SECONDS)
            # The first one shows what has been prepared. Each check of idleness scrapes, too.
            first = await _scraped(operator.metrics_port)
            operator.await_idle(600)
            began = time.monotonic()
            quiet_delays = await _delays(operator.health_port, asyncio.sleep(5.0))
            quiet = read_gaps(gaps, began, time.monotonic())
            used = operator.program.cpu_seconds
            found, delays = [], []
            for _ in range(scrapes):
                scraping = asyncio.ensure_future(_scraped(operator.metrics_port))
                delays.append(max(await _delays(operator.health_port, scraping)))
                found.append(await scraping)
                await asyncio.sleep(0.5)
            used = operator.program.cpu_seconds - used
            seconds = [each.seconds for each in found]
            late = [gap for each in found for gap in read_gaps(gaps, each.began, each.began + each.seconds)]
            return {
                "measurement": "scrape",
                "jobs": jobs,
                "firstSeconds": round(first.seconds, 3),
                "medianSeconds": round(quantile(seconds, 0.5), 3),
                "largestSeconds": round(max(seconds), 3),
                "cpuSecondsOfAScrape": round(used / scrapes, 3),
                "megabytes": round(found[0].size / 1e6, 1),
                **_largest("loopGap", late),
                **_largest("loopGapWithoutScrape", quiet),
                "probeMedianDelaySeconds": round(quantile(delays, 0.5), 3),
                "probeLargestDelaySeconds": round(max(delays), 3),
                "probeLargestDelaySecondsWithoutScrape": round(max(quiet_delays), 3),
                "operatorMegabytes": operator.program.resident_bytes >> 20,
            }


def _largest(name: str, gaps: list[Gap]) -> dict[str, float]:
    """The largest gap as the loop saw it, and without the time for which it had no core."""
    return {
        f"{name}Seconds": round(max((gap.seconds for gap in gaps), default=0.0), 3),
        f"{name}OwnSeconds": round(max((gap.own_seconds for gap in gaps), default=0.0), 3),
    }


@dataclass(frozen=True)
class _Scrape:
    began: float
    """On the monotonic clock."""
    seconds: float
    size: int
    """Bytes of the text."""


async def _scraped(port: int) -> _Scrape:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SCRAPER, str(port), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    began, seconds, size = output.split()
    return _Scrape(float(began), float(seconds), int(size))


async def _until_ready(operator: Operator) -> None:
    """Wait until the operator leads, without a scrape."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(600):
        while True:
            operator.program.check()
            with suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{operator.health_port}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)


async def _delays(port: int, work: Any) -> list[float]:
    """The times of probes, one after the other, while `work` lasts."""
    task = asyncio.ensure_future(work)
    times: list[float] = []
    async with aiohttp.ClientSession() as session:
        while not task.done():
            began = time.monotonic()
            async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                await response.read()
            times.append(time.monotonic() - began)
            await asyncio.sleep(PROBE_SECONDS)
    return times
