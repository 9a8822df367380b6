"""Models of the Job controller, the garbage collector and the claim protection of Kubernetes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune_operator.api.stages import CONTROLLER_LABEL, INDEX_ANNOTATION

from tests.support.simulation.server import CHILDREN, CLAIMS, JOBS, PODS, Body, Change, Server

if TYPE_CHECKING:
    from tests.support.simulation.loop import VirtualLoop

ENDED = frozenset({"Succeeded", "Failed"})


class Controllers:
    """Reacts to changes of objects after short random delays."""

    def __init__(self, server: Server, loop: VirtualLoop, draw: random.Random) -> None:
        self._server = server
        self._loop = loop
        self._random = draw
        self._queued: set[tuple[str, str]] = set()
        self._failed: dict[str, int] = {}
        """Failed pods of each Job that count, by the Job's uid."""
        self._succeeded: dict[str, set[int]] = {}
        """The numbers of the pods of each Job that have succeeded, by the Job's uid."""
        self.counts_suspended = draw.random() < 0.5
        """Whether a pod that a suspension has ended counts as failed. It depends on the version of Kubernetes."""
        server.listeners.append(self._notice)

    def _notice(self, change: Change) -> None:
        metadata = change.body["metadata"]
        uid, owners = metadata["uid"], metadata.get("ownerReferences") or ()
        deleted = change.type == "DELETED"
        if change.plural == PODS:
            self._notice_pod(change)
        if change.plural == CHILDREN:
            self._later(self._sync, uid)
        if change.plural == CLAIMS and "deletionTimestamp" in metadata:
            self._later(self._release_claims, "")
        if change.plural in {JOBS, CHILDREN} and (deleted or "finalizers" in metadata):
            self._later(self._collect, uid)
        if deleted or change.type == "ADDED":
            for owner in owners:
                self._later(self._collect, owner["uid"])

    def _notice_pod(self, change: Change) -> None:
        metadata = change.body["metadata"]
        owners = metadata.get("ownerReferences") or ()
        for owner in owners:
            self._later(self._sync, owner["uid"])
        if not owners and metadata["uid"] in self._server.tracked:
            self._later(self._release_pod, metadata["uid"])
        if change.type == "DELETED":
            self._later(self._release_claims, "")

    def _later(self, action: Callable[[str], None], uid: str) -> None:
        """Run `action` for `uid` soon, once for all changes until then."""
        mark = (action.__name__, uid)
        if mark in self._queued:
            return
        self._queued.add(mark)

        def run() -> None:
            self._queued.discard(mark)
            action(uid)

        self._loop.call_later(self._random.uniform(0.01, 0.4), run)

    # -- Jobs ----------------------------------------------------------------------------------------------------

    def _sync(self, uid: str) -> None:
        server = self._server
        job = next((body for body in server.all(CHILDREN) if body["metadata"]["uid"] == uid), None)
        pods = list(server.owned(PODS, uid))
        if job is None:
            for pod in pods:
                self._untrack(pod)
            return
        if is_finished(job):
            self._end_pods(pods)
            return
        for pod in pods:
            self._count(job, pod)
        pods = list(server.owned(PODS, uid))
        complete = len(self._succeeded.get(uid, ())) == job["spec"]["completions"]
        if complete or self._failed.get(uid):
            kind = "Complete" if complete else "Failed"
            message = "" if kind == "Complete" else "Job has reached the specified backoff limit"
            condition = {"type": kind, "status": "True", "message": message}
            server.change(CHILDREN, job, status={"conditions": [condition]})
            self._end_pods(pods)
        elif job["spec"].get("suspend"):
            self._end_pods(pods)
        elif "deletionTimestamp" not in job["metadata"]:
            # A pod that is being deleted is replaced when it has ended (`podReplacementPolicy: Failed`).
            missing = set(range(job["spec"]["completions"])) - self._succeeded.get(uid, set())
            for index in sorted(missing - {index_of(pod) for pod in pods if not _ended(pod)}):
                self._create_pod(job, index)

    def _count(self, job: Body, pod: Body) -> None:
        """Count a pod that has ended, then let it go."""
        uid, suspended = job["metadata"]["uid"], bool(job["spec"].get("suspend"))
        if pod["metadata"]["uid"] not in self._server.tracked or not _ended(pod):
            return
        (rule,) = job["spec"]["podFailurePolicy"]["rules"]
        ignored = disrupted(pod) and rule["action"] == "Ignore"
        if pod["status"]["phase"] == "Succeeded":
            self._succeeded.setdefault(uid, set()).add(index_of(pod))
        elif not ignored and not (suspended and not self.counts_suspended):
            self._failed[uid] = self._failed.get(uid, 0) + 1
        self._untrack(pod)

    def _untrack(self, pod: Body) -> None:
        """Remove the finalizer, and the pod if nothing else keeps it."""
        server = self._server
        server.tracked.discard(pod["metadata"]["uid"])
        if pod["metadata"].get("deletionGracePeriodSeconds") == 0 and server.current(PODS, pod) is not None:
            server.remove(PODS, pod)

    def _release_pod(self, uid: str) -> None:
        """Let a pod go that no Job owns any more."""
        for pod in self._server.all(PODS):
            if pod["metadata"]["uid"] == uid and not pod["metadata"].get("ownerReferences"):
                self._untrack(pod)

    def _end_pods(self, pods: list[Body]) -> None:
        for pod in pods:
            if _ended(pod):
                self._untrack(pod)
            elif "deletionTimestamp" not in pod["metadata"]:
                self._server.delete(PODS, pod)

    def _create_pod(self, job: Body, index: int) -> None:
        template, metadata = job["spec"]["template"], job["metadata"]
        name, annotations = metadata["name"], template["metadata"]["annotations"]
        if job["spec"].get("completionMode") == "Indexed":
            name, annotations = f"{name}-{index}", {**annotations, INDEX_ANNOTATION: str(index)}
        suffix = "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        labels = {**template["metadata"]["labels"], CONTROLLER_LABEL: metadata["uid"]}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        pod: dict[str, Any] = {
            "metadata": {
                "name": f"{name}-{suffix}",
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._server.tracked.add(self._server.create(PODS, pod, metadata["namespace"])["metadata"]["uid"])

    # -- owners --------------------------------------------------------------------------------------------------

    def _collect(self, uid: str) -> None:
        """Delete the dependents of an owner that is gone, or that waits for them."""
        server = self._server
        owner = next(
            (
                body
                for plural in (JOBS, CHILDREN)
                for body in server.all(plural)
                if body["metadata"]["uid"] == uid
            ),
            None,
        )
        finalizers = [] if owner is None else owner["metadata"].get("finalizers") or []
        if owner is not None and not finalizers:
            return
        dependents = [
            (plural, body) for plural in (CHILDREN, CLAIMS, PODS) for body in server.owned(plural, uid)
        ]
        if "orphan" in finalizers:
            for plural, body in dependents:
                server.change(plural, body, metadata={"ownerReferences": None})
            dependents = []
        for plural, body in dependents:
            if "deletionTimestamp" not in body["metadata"]:
                server.delete(plural, body, propagation="Foreground" if finalizers else "Background")
        if owner is not None and not dependents:
            server.remove(JOBS if owner in server.all(JOBS) else CHILDREN, owner)

    def _release_claims(self, _: str) -> None:
        """Remove the claims that are being deleted and that no pod uses any more.

        As in `pvc_protection_controller.go`, a pod uses its claims from its node on, and as long as it exists.
        """
        server = self._server
        used = {
            (pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
            for pod in server.all(PODS)
            if pod["spec"].get("nodeName")
            for volume in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }
        for claim in server.all(CLAIMS):
            metadata = claim["metadata"]
            if "deletionTimestamp" in metadata and (metadata["namespace"], metadata["name"]) not in used:
                server.remove(CLAIMS, claim)


def is_finished(job: Body) -> bool:
    """True if the Job has ended."""
    return any(
        each["type"] in {"Complete", "Failed"} for each in job.get("status", {}).get("conditions") or ()
    )


def index_of(pod: Body) -> int:
    """Return the number of a pod among those of its Job."""
    return int(pod["metadata"]["annotations"].get(INDEX_ANNOTATION, "0"))


def _ended(pod: Body) -> bool:
    return pod["status"]["phase"] in ENDED


def disrupted(pod: Body) -> bool:
    """True if the pod has the condition of a disruption."""
    return any(
        each["type"] == "DisruptionTarget" and each["status"] == "True"
        for each in pod["status"].get("conditions") or ()
    )
