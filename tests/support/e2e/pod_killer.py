"""Deletes the PREPARE pods of a job by force, at points of their progress that a seed chooses."""

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
# The phases of PREPARE in order, by the activity that its progress tells.
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
    """A point of PREPARE: the number of the phase and the share of it that is done."""

    phase: int
    share: float


def points(seed: int, counts: dict[str, int]) -> list[Point]:
    """Random points in order, so many in each phase: what is done stays done, so that progress only grows."""
    generator = random.Random(seed)  # noqa: S311 -- reproducible, not secret
    order = list(PHASES)
    return sorted(
        # The start has no extent.
        Point(order.index(phase), 0.0 if phase == "start" else generator.random())
        for phase, count in counts.items()
        for _ in range(count)
    )


def point_of(progress: dict[str, Any]) -> Point | None:
    """Where a progress document stands; None for one that is in no phase."""
    for number, activity in enumerate(PHASES.values()):
        if progress["activity"] == activity:
            total = progress["totalSteps"]
            return Point(number, progress["step"] / total if total else 0.0)
    return None


@dataclass(frozen=True)
class Kill:
    """One pod that was deleted, and where it had last told to be."""

    pod: str
    phase: str
    share: float


class PodKiller:
    """Follows the pods of one job's PREPARE and deletes them, in a `with` block; `kills` is what it did."""

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
        """Delete one pod for each point, once its progress has reached it, until all are done or `seconds` are over."""
        deadline = time.monotonic() + seconds
        for point in wanted:
            while time.monotonic() < deadline:
                pod = self._running_pod()
                if pod is not None and self._kill_at(pod, point, deadline):
                    break
                time.sleep(_POLL_SECONDS)

    def _kill_at(self, pod: str, point: Point, deadline: float) -> bool:
        """Watch one pod until it has reached the point, and delete it; False if it ended before."""
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
        """The pod whose trainer runs and that nobody has deleted yet."""
        listed = self._api.get("/pods", params={"labelSelector": self._selector}).raise_for_status().json()
        for pod in listed["items"]:
            states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
            if any("running" in state for state in states) and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        return None

    def _progress(self, pod: str) -> dict[str, Any] | None:
        """What the pod tells, through the API server; None while or once it does not serve."""
        answer = self._api.get(f"/pods/{pod}:{TELEMETRY_PORT}/proxy/progress")
        if answer.status_code != httpx.codes.OK:
            return None
        found: dict[str, Any] = answer.json()
        return found
