"""Whole FineTuneJobs of three stages, with real Jobs and pods that kwok runs and ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.scale.control_plane import ControlPlane, running
from benchmarks.scale.load import Load, beside, quantile, until
from benchmarks.scale.operator_process import Limits, Operator, operating
from benchmarks.scale.prefill import ended_status, prefill

SAMPLE_SECONDS = 5.0
TRAIN_PODS = "/api/v1/pods?labelSelector=finetune.dev/stage%3Dtrain"


class Departures:
    """The pods of TRAIN: how many run, and the time from a trainer's exit to the end of its pod."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.running: dict[str, str] = {}
        """The job of each pod that runs, by the pod's uid."""
        self.most_running = 0
        self.doubled: set[str] = set()
        """Jobs of which two pods ran at once."""
        self._ended: dict[str, float] = {}
        self._jobs: set[str] = set()

    def see(self, kind: str, body: dict[str, Any], now: float) -> None:
        """Take in one event of the watch of pods."""
        metadata, phase = body["metadata"], body["status"]["phase"]
        uid, job = metadata["uid"], f"{metadata['namespace']}/{metadata['labels']['finetune.dev/job']}"
        if phase == "Running" and kind != "DELETED":
            if uid not in self.running and job in self._jobs:
                self.doubled.add(job)
            self.running[uid] = job
            self._jobs.add(job)
            self.most_running = max(self.most_running, len(self.running))
        elif self.running.pop(uid, None) is not None:
            self._jobs.discard(job)
        if phase in {"Succeeded", "Failed"}:
            self._ended.setdefault(uid, now)
        if kind == "DELETED" and uid in self._ended:
            self.seconds.append(now - self._ended.pop(uid))


class Ended:
    """The FineTuneJobs that have ended, by the operator's own count."""

    def __init__(self, operator: Operator, period: float = SAMPLE_SECONDS) -> None:
        """Look every `period` seconds."""
        self._operator = operator
        self._period = period
        self.phases: dict[str, int] = {}
        self.resident: list[int] = []
        self.anonymous: list[int] = []
        self.scrapes: list[float] = []

    @property
    def count(self) -> int:
        """Jobs that have ended."""
        return sum(self.phases.get(phase, 0) for phase in ("Succeeded", "Failed"))

    async def sample(self) -> None:
        """Scrape again and again, until canceled."""
        while True:
            began = time.monotonic()
            with suppress(OSError):
                self.phases = await asyncio.to_thread(self._operator.phases)
                self.scrapes.append(time.monotonic() - began)
            self.resident.append(self._operator.program.resident_bytes)
            self.anonymous.append(self._operator.program.anonymous_bytes)
            await asyncio.sleep(self._period)


async def lives(
    folder: Path,
    jobs: int,
    namespaces: int,
    limits: Limits,
    *,
    gpus: int,
    train_seconds: float,
    seconds: float,
    ended: int = 0,
) -> dict[str, Any]:
    """Run `jobs` to their end, at most `gpus` of them in TRAIN at once, for `seconds` at most.

    Beside them are `ended` jobs that have ended before, so that a run can be measured in slices.
    """
    with running(folder) as plane:
        if ended:
            async with Load.connected(plane.kubeconfig("admin")) as load:
                await prefill(plane, load, ended, namespaces, ended_status())
        plane.run_pods(gpus=gpus, seconds=1.0, train_seconds=train_seconds)
        with operating(plane, limits) as operator:
            async with Load.connected(plane.kubeconfig("admin")) as load:
                await load.create_namespaces(namespaces)
                operator.await_idle(60)
                return await _lives(plane, operator, load, limits, jobs, namespaces, seconds, ended)


async def _lives(
    plane: ControlPlane,
    operator: Operator,
    load: Load,
    limits: Limits,
    jobs: int,
    namespaces: int,
    seconds: float,
    earlier: int,
) -> dict[str, Any]:
    departures, ended = Departures(), Ended(operator)
    before = {each.name: each.cpu_seconds for each in (operator.program, *plane.programs)}

    def whole() -> bool:
        plane.check()
        operator.program.check()
        return ended.count >= earlier + jobs and not departures.running

    async with beside(load.watch(TRAIN_PODS, departures.see)), beside(ended.sample()):
        began = time.monotonic()
        await load.create_jobs(jobs, namespaces, first=earlier)
        with suppress(TimeoutError):
            await until(whole, seconds, lambda: f"phases {ended.phases}")
        duration = time.monotonic() - began
        finished = ended.count - earlier
        await asyncio.sleep(2.0)
    used = {each.name: each.cpu_seconds - before[each.name] for each in (operator.program, *plane.programs)}
    own, server = used["operator"], used["kube-apiserver"]
    waits = departures.seconds
    return {
        "measurement": "lives",
        "limits": limits.name,
        "jobs": jobs,
        "endedBefore": earlier,
        "finished": finished,
        "seconds": round(duration, 1),
        "jobsASecond": round(finished / duration, 2),
        "phases": ended.phases,
        "operatorCpuSeconds": round(own, 1),
        "apiServerCpuSeconds": round(server, 1),
        "operatorToApiServer": round(own / server, 3),
        "cpuMillisecondsOfALife": {
            name: round(1000 * each / max(finished, 1), 1) for name, each in used.items()
        },
        "coresUsed": round(sum(used.values()) / duration, 2),
        "writesOfAJob": round(sum(operator.writes().values()) / max(finished, 1), 2),
        "operatorMegabytes": operator.program.resident_bytes >> 20,
        "operatorPeakMegabytes": operator.program.peak_bytes >> 20,
        "mostRunning": departures.most_running,
        "jobsWithTwoTrainers": len(departures.doubled),
        "podGoneP50Seconds": round(quantile(waits, 0.5), 2) if waits else None,
        "podGoneP99Seconds": round(quantile(waits, 0.99), 2) if waits else None,
        "slowestScrapeSeconds": round(max(ended.scrapes), 3),
    }
