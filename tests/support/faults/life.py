"""The whole life of one FineTuneJob in a lane, and what must hold at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum

from tests.support.faults.admin import MERGE, Body
from tests.support.faults.kubelet import STORAGE_CLASS, Key
from tests.support.faults.lane import Lane
from tests.support.operator import make_spec

LIFE_SECONDS = 120.0
"""Time for a life without a fault, on a busy machine."""
_LOOK_SECONDS = 0.1


class Story(Enum):
    """What happens to a job besides its three stages. The value is the time that this takes at most, in seconds."""

    PLAIN = 0
    SUSPENDED = 30
    """It is suspended and resumed twice while PREPARE runs."""
    EXPANDED = 1
    """Its workspace is too small for TRAIN."""
    SLOW = 60
    """PREPARE's pod does not start until what the life waits for has happened."""


class Life:
    """One job, from its creation until nothing but the FineTuneJob is left."""

    def __init__(self, lane: Lane, story: Story) -> None:
        self._lane = lane
        self._admin = lane.admin
        self._kubelet = lane.kubelet
        self._story = story
        self.key: Key = (lane.name, lane.next_name())
        collection = f"/apis/finetune.dev/v1alpha1/namespaces/{lane.name}/finetunejobs"
        self._path = f"{collection}/{self.key[1]}"
        self._collection = collection
        self._job: Body = {}
        self.ended: float | None = None
        """Time at which nothing but the FineTuneJob was left."""
        self._log = lane.process.log.stat().st_size
        self._ends = len(lane.process.ends)

    async def create(self) -> None:
        """Create the job, with a size of its workspace that no other job has: the operator rehearses what is new."""
        if self._story is Story.SUSPENDED:
            self._kubelet.hold(self.key, "prepare end")
        elif self._story is Story.SLOW:
            self._kubelet.hold(self.key, "prepare start")
        size = "100Mi" if self._story is Story.EXPANDED else f"{2000 + self._lane.number}Mi"
        workspace = {"size": size, "storageClassName": STORAGE_CLASS}
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.key[1]},
            "spec": make_spec(workspace=workspace, lifecycle={"keepWorkspace": "Never"}),
        }
        await self._admin.request("POST", self._collection, body)

    async def live(self, happened: Callable[[], bool] = lambda: True) -> None:
        """Tell the story until the job has ended, nothing of it is left, and `happened` is true."""
        if self._story is Story.SUSPENDED:
            for _ in range(2):
                await _until(self._has_pod)
                await self._suspend(suspend=True)
                await self._until_job(lambda job: condition(job, "Suspended") == "True")
                await _until(lambda: not self._has_pod())
                await self._suspend(suspend=False)
            await _until(self._has_pod)
            self._kubelet.release(self.key, "prepare end")
        elif self._story is Story.SLOW:
            await _until(happened)
            self._kubelet.release(self.key, "prepare start")
        await self._until_job(lambda job: condition(job, "Succeeded") != "Unknown")
        await _until(lambda: not self._kubelet.present[self.key])
        claim = f"/api/v1/namespaces/{self.key[0]}/persistentvolumeclaims/{self.key[1]}-workspace"
        while await self._admin.unless_gone("GET", claim) is not None:  # noqa: ASYNC110 -- no event says it
            await asyncio.sleep(_LOOK_SECONDS)
        self.ended = time.monotonic()
        await _until(happened)

    def _has_pod(self) -> bool:
        return bool(self._kubelet.present[self.key] & set(self._kubelet.pods[self.key]))

    async def _suspend(self, *, suspend: bool) -> None:
        await self._admin.request("PATCH", self._path, {"spec": {"suspend": suspend}}, MERGE)

    async def _until_job(self, holds: Callable[[Body], bool]) -> None:
        while True:
            self._job = await self._admin.request("GET", self._path)
            if holds(self._job):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def __str__(self) -> str:
        shown = [
            f"{entry['type']}={entry['status']} ({entry['reason']}: {entry['message'][:200]})"
            for entry in _status(self._job).get("conditions", ())
            if entry["type"] in {"Succeeded", "Stalled", "Reconciling"}
        ]
        names = {**self._kubelet.jobs[self.key], **self._kubelet.pods[self.key]}
        left = [names.get(uid, uid) for uid in self._kubelet.present[self.key]]
        return f"{self.key[1]}: {'; '.join(shown)}; left: {left}"

    async def judge(self) -> list[str]:
        """What is wrong at the end of the life."""
        key, kubelet, process = self.key, self._kubelet, self._lane.process
        self._job = await self._admin.request("GET", self._path)
        problems = []
        if condition(self._job, "Succeeded") != "True":
            problems.append(f"it must have succeeded, found {self}")
        expected = sorted(f"{key[1]}-{stage}-0" for stage in ("prepare", "train", "merge"))
        if sorted(kubelet.jobs[key].values()) != expected:
            problems.append(f"three Jobs must be created once, found {sorted(kubelet.jobs[key].values())}")
        pods = 5 if self._story is Story.SUSPENDED else 3
        if len(kubelet.pods[key]) != pods:
            problems.append(f"{pods} pods must be created, found {sorted(kubelet.pods[key].values())}")
        attempts = [(each["stage"], each["outcome"]) for each in _status(self._job).get("attempts", ())]
        done = [stage for stage, outcome in attempts if outcome == "Succeeded"]
        if done != ["Prepare", "Train", "Merge"]:
            problems.append(f"each stage must succeed once, found {attempts}")
        problems += [each for each in kubelet.violations if str(key) in each or "stand-in" in each]
        problems += await self._doubled_events()
        traceback = process.tracebacks(self._log)
        if traceback:
            problems.append(f"the log must hold no traceback, found {traceback}")
        if len(process.ends) > self._ends:
            problems.append(f"the operator must go on, but it ended with {process.ends[self._ends :]}")
        await self._admin.unless_gone("DELETE", self._path)
        return problems

    async def _doubled_events(self) -> list[str]:
        uid = self._job["metadata"]["uid"]
        path = f"/api/v1/namespaces/{self.key[0]}/events?fieldSelector=involvedObject.uid={uid}"
        told = [
            (each["reason"], each["message"]) for each in (await self._admin.request("GET", path))["items"]
        ]
        return [f"Event {each} must be told once" for each in sorted(set(told)) if told.count(each) > 1]


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 -- what is looked at has no event of its own
        await asyncio.sleep(_LOOK_SECONDS)


def _status(job: Body) -> Body:
    found: Body = job.get("status") or {}
    return found


def condition(job: Body, kind: str) -> str:
    """The status of a condition of a FineTuneJob."""
    conditions = _status(job).get("conditions", ())
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "Unknown")
