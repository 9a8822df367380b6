"""When each trainer pod of a namespace began, ended and was gone, and which Jobs there were, by watches."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from devcluster.api import ApiClient

JOB_LABEL, STAGE_LABEL = "finetune.dev/job", "finetune.dev/stage"
_WATCH_SECONDS = 21_600


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
        if times.ended is None and times.began is not None and over:
            times.ended = now
        if kind == "DELETED":
            times.gone = now
