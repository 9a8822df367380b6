"""Deletes the PREPARE pods of a job by force, at points of progress that a seed determines."""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import httpx
from devcluster.kubectl import Kubectl
from devcluster.layout import tool

TELEMETRY_PORT = 9500
# The phases of PREPARE in order, by the activity in its progress.
PHASES = {
    "start": "Starting",
    "fetch": "FetchingDataset",
    "prove": "ProvingRows",
    "fetch the model": "FetchingModel",
    "quantize": "Quantizing",
    "analyze": "AnalysingDataset",
}
_POLL_SECONDS = 0.03


@dataclass(frozen=True, order=True)
class Point:
    """A point of PREPARE: the number of the phase and its completed fraction."""

    phase: int
    share: float


def points(seed: int, counts: dict[str, int]) -> list[Point]:
    """Return random points in order, with a given number per phase; progress never decreases."""
    generator = random.Random(seed)  # noqa: S311 -- reproducible, not secret
    order = list(PHASES)
    return sorted(
        # The start phase has no progress.
        Point(order.index(phase), 0.0 if phase == "start" else generator.random())
        for phase, count in counts.items()
        for _ in range(count)
    )


def point_of(progress: dict[str, Any]) -> Point | None:
    """Return the point of a progress document, or None if it is in no phase."""
    for number, activity in enumerate(PHASES.values()):
        if progress["activity"] == activity:
            total = progress["totalSteps"]
            return Point(number, progress["step"] / total if total else 0.0)
    return None


@dataclass(frozen=True)
class Kill:
    """A deleted pod and its last reported point."""

    pod: str
    phase: str
    share: float


class PodKiller:
    """Watches and deletes the PREPARE pods of one job in a `with` block; `kills` lists the deletions."""

    def __init__(self, kubectl: Kubectl, job: str) -> None:
        self._kubectl = kubectl
        self._selector = f"finetune.dev/job={job},finetune.dev/stage=prepare"
        self._stack = ExitStack()
        self.kills: list[Kill] = []

    def __enter__(self) -> Self:
        command = [str(tool("kubectl")), "proxy", "--port=0"]
        environment = {**os.environ, "KUBECONFIG": str(self._kubectl.kubeconfig)}
        process = self._stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
        self._stack.callback(process.terminate)
        line = process.stdout.readline() if process.stdout is not None else ""
        address = line.rpartition(" ")[2].strip()
        base = f"http://{address}/api/v1/namespaces/{self._kubectl.namespace}"
        self._api = self._stack.enter_context(httpx.Client(base_url=base, timeout=10, trust_env=False))
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def run(self, wanted: list[Point], *, seconds: float) -> None:
        """Delete one pod at each point of progress, until all points are done or `seconds` are over."""
        deadline = time.monotonic() + seconds
        for point in wanted:
            while time.monotonic() < deadline:
                pod = self._running_pod()
                if pod is not None and self._kill_at(pod, point, deadline):
                    break
                time.sleep(_POLL_SECONDS)

    def _kill_at(self, pod: str, point: Point, deadline: float) -> bool:
        """Watch one pod until it reaches the point, and delete it; return False if it ends before."""
        while time.monotonic() < deadline:
            progress = self._progress(pod)
            reached = None if progress is None else point_of(progress)
            if reached is not None and reached >= point:
                return self._delete(pod, reached)
            if progress is None and self._running_pod() != pod:
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def _delete(self, pod: str, reached: Point) -> bool:
        answer = self._api.request("DELETE", f"/pods/{pod}", json={"gracePeriodSeconds": 0})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        answer.raise_for_status()
        self.kills.append(Kill(pod, list(PHASES)[reached.phase], round(reached.share, 3)))
        return True

    def _running_pod(self) -> str | None:
        """Return the pod with a running trainer that is not deleted yet."""
        listed = self._api.get("/pods", params={"labelSelector": self._selector}).raise_for_status().json()
        for pod in listed["items"]:
            states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
            if any("running" in state for state in states) and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        return None

    def _progress(self, pod: str) -> dict[str, Any] | None:
        """Return the pod's progress through the API server, or None while its server does not run."""
        answer = self._api.get(f"/pods/{pod}:{TELEMETRY_PORT}/proxy/progress")
        if answer.status_code != httpx.codes.OK:
            return None
        found: dict[str, Any] = answer.json()
        return found
