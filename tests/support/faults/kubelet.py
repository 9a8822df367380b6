"""Stands in for the kubelets of two nodes and for a storage driver: what a kwok stage would do.

The API server, the scheduler, the Job controller and the garbage collector are the real ones. The trainers' results are
documents of the contract.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

import aiohttp
from devcluster.gpus import Gpus
from devcluster.pretend_nodes import PretendNode, gpu_node
from finetune_operator.api.stages import (
    ATTEMPT_LABEL,
    CONTAINER_NAME,
    JOB_LABEL,
    RUN_ANNOTATION,
    STAGE_LABEL,
    WORK_STAGES,
)

from tests.support.faults.admin import MERGE, Admin, Body, Rejected
from tests.support.simulation.trainers import Task, failure, success

STORAGE_CLASS = "faults"
NODES = (PretendNode("faults-cpu"), gpu_node("faults-gpu", Gpus(count=100)))
WORK_SECONDS = 0.1
"""Time for which a trainer runs."""
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_RENEWAL_SECONDS = 5.0
_VOLUMES = "/api/v1/persistentvolumes"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


class Kubelet:
    """Runs the pods of all FineTuneJobs in an `async with` block, and records their Jobs and pods."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._held: dict[tuple[Key, str], asyncio.Event] = {}
        self.jobs: dict[Key, dict[str, str]] = defaultdict(dict)
        """Names of the Jobs of each FineTuneJob by uid, also of those that are gone."""
        self.pods: dict[Key, dict[str, str]] = defaultdict(dict)
        """The same for pods."""
        self.present: dict[Key, set[str]] = defaultdict(set)
        """uids of the Jobs and pods of each FineTuneJob that exist now."""
        self.violations: list[str] = []
        self._live: dict[Key, set[str]] = defaultdict(set)

    async def __aenter__(self) -> Self:
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": STORAGE_CLASS},
            "provisioner": "tests.finetune.dev/faults",
            "allowVolumeExpansion": True,
        }
        await self._create(_CLASSES, body)
        for node in NODES:
            await self._create(_LEASES, _lease(node.name))
            await self._create("/api/v1/nodes", node.body())
        for run in (self._renew(), self._follow_pods(), self._follow_jobs(), self._follow_claims()):
            self._start(run)
        return self

    async def __aexit__(self, *_error: object) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for node in NODES:
            await self._admin.unless_gone("DELETE", f"/api/v1/nodes/{node.name}")
            await self._admin.unless_gone("DELETE", f"{_LEASES}/{node.name}")
        await self._admin.unless_gone("DELETE", f"{_CLASSES}/{STORAGE_CLASS}")
        for error in ended:
            if isinstance(error, Exception):
                raise error

    def hold(self, key: Key, what: str) -> None:
        """Let no pod of a stage go on from now on: `start` or `end` with the stage, as in `prepare end`."""
        self._held[key, what] = asyncio.Event()

    def release(self, key: Key, what: str) -> None:
        """Let the pods go on."""
        self._held.pop((key, what)).set()

    async def _create(self, collection: str, body: Body) -> None:
        try:
            await self._admin.request("POST", collection, body)
        except Rejected as error:
            if error.status != 409:
                raise

    def _start(self, run: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.violations.append(f"the stand-in for the kubelet failed: {task.exception()!r}")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            for node in NODES:
                # An overloaded API server is asked again soon, long before the node would seem to be lost.
                with suppress(Rejected, aiohttp.ClientError):
                    await self._admin.request("PATCH", f"{_LEASES}/{node.name}", _lease(node.name), MERGE)

    # -- pods and Jobs -------------------------------------------------------------------------------------------

    async def _follow_jobs(self) -> None:
        async for kind, job in self._admin.follow("/apis/batch/v1/jobs", f"labelSelector={JOB_LABEL}"):
            self._note(self.jobs, kind, job)

    async def _follow_pods(self) -> None:
        async for kind, pod in self._admin.follow("/api/v1/pods", f"labelSelector={JOB_LABEL}"):
            key = self._note(self.pods, kind, pod)
            uid = pod["metadata"]["uid"]
            if kind == "DELETED" or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
                self._live[key].discard(uid)
            else:
                self._live[key].add(uid)
                if len(self._live[key]) > 1:
                    self.violations.append(f"{key} has two live pods: {sorted(self.pods[key].values())}")
            if kind == "DELETED":
                self._stop(uid)
            elif "deletionTimestamp" in pod["metadata"]:
                self._stop(uid)
                self._start(self._take_away(pod))
            elif pod["spec"].get("nodeName") and uid not in self._running:
                self._running[uid] = self._start(self._run(pod))

    def _note(self, kept: dict[Key, dict[str, str]], kind: str, body: Body) -> Key:
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["labels"][JOB_LABEL])
        kept[key][metadata["uid"]] = metadata["name"]
        (self.present[key].discard if kind == "DELETED" else self.present[key].add)(metadata["uid"])
        return key

    def _stop(self, uid: str) -> None:
        task = self._running.pop(uid, None)
        if task is not None:
            task.cancel()

    async def _wait(self, key: Key, what: str) -> None:
        held = self._held.get((key, what))
        if held is not None:
            await held.wait()

    async def _run(self, pod: Body) -> None:
        """A pod's life on its node: it starts, works, and ends with its stage's result."""
        task = _task(pod)
        await self._wait(task.key, f"{task.stage.slug} start")
        await self._set(pod, "Running", {"running": {"startedAt": _now()}})
        await asyncio.sleep(WORK_SECONDS)
        await self._wait(task.key, f"{task.stage.slug} end")
        await self._set(pod, "Succeeded", _terminated(0, success(task, set())))

    async def _take_away(self, pod: Body) -> None:
        """Stop a pod that is marked for deletion, as its kubelet does, and confirm that it is gone."""
        if pod["status"].get("phase") not in {"Succeeded", "Failed"} and pod["spec"].get("nodeName"):
            ended = _terminated(75, failure(_task(pod), "Interrupted", "Interrupted"))
            await self._set(pod, "Failed", ended)
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        with suppress(Rejected):
            await self._admin.request("DELETE", _path(pod), body)

    async def _set(self, pod: Body, phase: str, state: Body) -> None:
        container = {"name": CONTAINER_NAME, "image": "none", "imageID": "none", "restartCount": 0}
        status = {
            "phase": phase,
            "startTime": _now(),
            "containerStatuses": [
                {**container, "ready": phase == "Running", "started": phase == "Running", "state": state}
            ],
        }
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        with suppress(Rejected):
            await self._admin.request("PATCH", f"{_path(pod)}/status", body, MERGE)

    # -- claims --------------------------------------------------------------------------------------------------

    async def _follow_claims(self) -> None:
        """Make a volume for each claim of the class, and remove it with the claim."""
        async for kind, claim in self._admin.follow("/api/v1/persistentvolumeclaims"):
            metadata, spec = claim["metadata"], claim["spec"]
            if spec.get("storageClassName") != STORAGE_CLASS:
                continue
            name = f"faults-{metadata['uid']}"
            if kind == "DELETED":
                await self._admin.unless_gone("DELETE", f"{_VOLUMES}/{name}")
            elif not spec.get("volumeName") and kind == "ADDED":
                await self._create(_VOLUMES, _volume(name, claim))


def _task(pod: Body) -> Task:
    metadata = pod["metadata"]
    labels = metadata["labels"]
    stage = next(stage for stage in WORK_STAGES if stage.slug == labels[STAGE_LABEL])
    run = json.loads(metadata["annotations"][RUN_ANNOTATION])
    key = (metadata["namespace"], labels[JOB_LABEL])
    return Task(key, run["job"]["uid"], stage, int(labels[ATTEMPT_LABEL]))


def _path(pod: Body) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _terminated(code: int, message: str) -> Body:
    now = _now()
    return {"terminated": {"exitCode": code, "message": message, "startedAt": now, "finishedAt": now}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lease(name: str) -> Body:
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed},
    }


def _volume(name: str, claim: Body) -> Body:
    metadata, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "claimRef": {**reference, **{part: metadata[part] for part in ("namespace", "name", "uid")}},
            "hostPath": {"path": "/tmp"},  # noqa: S108 -- no pod mounts it
        },
    }
