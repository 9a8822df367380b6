"""When each trainer pod of a namespace began, ended and was gone, and which Jobs there were, by watches."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from devcluster.api import ApiClient

JOB_LABEL, STAGE_LABEL = "finetune.dev/job", "finetune.dev/stage"
_WATCH_SECONDS = 21_600


@dataclass(frozen=True)
class Departure:
    """The seconds from the end of a pod's container until the pod is gone, and their parts.

    The kubelet gives the end in whole seconds. Without `Timeline.use`, the total and the report seem up to a second longer.
    """

    total: float
    report: float
    """Until the kubelet has reported the end."""
    decision: float
    """Until the operator, and the controllers that act for it, have deleted the pod."""
    removal: float
    """Until the kubelet has taken down what the pod had, and the API server has removed it."""


@dataclass
class PodTimes:
    """A pod with the times of its events at this watch, in seconds of the monotonic clock."""

    name: str
    job: str
    stage: str
    owner: str
    """The uid of its Job."""
    began: float | None = None
    ended: float | None = None
    """The end of its containers, from which on its GPU is free."""
    gone: float | None = None
    finished: float | None = None
    """The end of its last container, on the clock of `time.time`: by the kubelet in whole seconds, or by `Timeline.use`."""
    reported: float | None = None
    """When the API server told about that end; on the same clock, as the next two."""
    condemned: float | None = None
    """When the API server told that the pod is being deleted."""
    removed: float | None = None
    containers: tuple[str, ...] = ()
    """The names of its ended containers at the container runtime."""

    @property
    def departure(self) -> Departure | None:
        """How long its removal took; None if it has not ended or is not gone."""
        if self.finished is None or self.reported is None or self.removed is None:
            return None
        condemned = self.removed if self.condemned is None else self.condemned
        return Departure(
            total=self.removed - self.finished,
            report=self.reported - self.finished,
            decision=max(condemned - self.reported, 0.0),
            removal=self.removed - max(condemned, self.reported),
        )

    def overlaps(self, other: PodTimes) -> bool:
        """True if both pods ran at one time."""
        if self.began is None or other.began is None:
            return False
        return self.began < other.last and other.began < self.last

    @property
    def last(self) -> float:
        """The time at which it has ended for certain."""
        return min(each for each in (self.ended, self.gone, float("inf")) if each is not None)


@dataclass
class Timeline:
    """Records pods and Jobs during a `with` block."""

    kubeconfig: Path
    namespace: str
    pods: dict[str, PodTimes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The metadata of each Job by its uid."""
    _leaving: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        core, batch = f"/api/v1/namespaces/{self.namespace}", f"/apis/batch/v1/namespaces/{self.namespace}"
        for path, note in ((f"{core}/pods", self._note_pod), (f"{batch}/jobs", self._note_job)):
            api = ApiClient(self.kubeconfig, 60)
            version = api.request("GET", path)["metadata"]["resourceVersion"]
            threading.Thread(target=self._follow, args=(api, path, version, note), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.set()

    def use(self, ends: Mapping[str, float]) -> int:
        """Take the ends of containers by name from the container runtime; return the number of pods whose end was known."""
        found = 0
        for pod in self.pods.values():
            if pod.containers and all(name in ends for name in pod.containers):
                pod.finished = max(ends[name] for name in pod.containers)
                found += 1
        return found

    def _follow(self, api: ApiClient, path: str, version: str, note: Any) -> None:
        try:
            for event in api.watch(path, version, _WATCH_SECONDS):
                note(event["type"], event["object"], time.monotonic())
        except (OSError, http.client.HTTPException):
            # The cluster may end before the watch does.
            if not self._leaving.is_set():
                raise

    def _note_job(self, _kind: str, job: dict[str, Any], _now: float) -> None:
        self.jobs.setdefault(job["metadata"]["uid"], job["metadata"])

    def _note_pod(self, kind: str, pod: dict[str, Any], now: float) -> None:
        metadata = pod["metadata"]
        labels = metadata.get("labels") or {}
        if STAGE_LABEL not in labels:
            return
        owners = metadata.get("ownerReferences") or [{"uid": ""}]
        times = self.pods.setdefault(
            metadata["uid"],
            PodTimes(metadata["name"], labels[JOB_LABEL], labels[STAGE_LABEL], owners[0]["uid"]),
        )
        states = [each["state"] for each in pod["status"].get("containerStatuses", [])]
        if times.began is None and any("running" in state or "terminated" in state for state in states):
            times.began = now
        over = pod["status"].get("phase") in {"Succeeded", "Failed"} or (
            bool(states) and all("terminated" in state for state in states)
        )
        wall = time.time()
        if times.ended is None and times.began is not None and over:
            times.ended = now
        ends = [state["terminated"]["finishedAt"] for state in states if "terminated" in state]
        if times.reported is None and over and ends:
            times.finished = max(datetime.fromisoformat(end).timestamp() for end in ends)
            times.reported = wall
            known = pod["status"]["containerStatuses"]
            times.containers = tuple(each.get("containerID", "").rpartition("/")[2] for each in known)
        if times.condemned is None and "deletionTimestamp" in metadata:
            times.condemned = wall
        if kind == "DELETED":
            times.gone, times.removed = now, wall
