"""A scrape of the metrics of many active FineTuneJobs: its time, and the delay of another request meanwhile.

The other request is a probe of the kubelet, which the same event loop answers. Every scrape has a process of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.scale.control_plane import running
from benchmarks.scale.load import Load, quantile
from benchmarks.scale.operator_process import Limits, operating
from benchmarks.scale.prefill import new_status, prefill

PROBE_SECONDS = 0.002
_SCRAPER = """
import http.client, sys, time
began = time.monotonic()
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/metrics")
response = connection.getresponse()
size = 0
while piece := response.read(2**20):
    size += len(piece)
print(time.monotonic() - began, size)
"""


async def scrape(folder: Path, jobs: int, namespaces: int, limits: Limits, scrapes: int) -> dict[str, Any]:
    """Scrape an operator with `jobs` active ones, and once more after each scrape."""
    with running(folder) as plane:
        async with Load.connected(plane.kubeconfig("admin")) as load:
            await prefill(plane, load, jobs, namespaces, new_status(), suspend=True)
        with operating(plane, limits) as operator:
            # Each readiness check scrapes, so the lines of all jobs are formatted by now.
            operator.await_idle(600)
            quiet = await _delays(operator.health_port, asyncio.sleep(2.0))
            found, delays = [], []
            for _ in range(scrapes):
                scraping = asyncio.ensure_future(_scraped(operator.metrics_port))
                delays.append(max(await _delays(operator.health_port, scraping)))
                found.append(await scraping)
                await asyncio.sleep(0.5)
            seconds = [each[0] for each in found]
            return {
                "measurement": "scrape",
                "jobs": jobs,
                "medianSeconds": round(quantile(seconds, 0.5), 3),
                "largestSeconds": round(max(seconds), 3),
                "megabytes": round(found[0][1] / 1e6, 1),
                "probeMedianDelaySeconds": round(quantile(delays, 0.5), 3),
                "probeLargestDelaySeconds": round(max(delays), 3),
                "probeLargestDelaySecondsWithoutScrape": round(max(quiet), 3),
                "operatorMegabytes": operator.program.resident_bytes >> 20,
            }


async def _scraped(port: int) -> tuple[float, int]:
    """Seconds and bytes of one scrape."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SCRAPER, str(port), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    seconds, size = output.split()
    return float(seconds), int(size)


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
