"""A model of the API server: objects, resource versions, preconditions, selectors, graceful deletion and admission.

Stored objects are never edited in place, so that readers may keep them. Every change is reported to the listeners.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from finetune_operator.cluster.client import _failure
from finetune_operator.cluster.ended_jobs import ENDED, UNFINISHED
from finetune_operator.errors import ApiError

Body = dict[str, Any]
Name = tuple[str, str]
"""Namespace (empty for objects of the cluster) and name."""

JOBS = "finetunejobs"
CHILDREN = "jobs"
PODS = "pods"
CLAIMS = "persistentvolumeclaims"
NODES = "nodes"
LEASES = "leases"
VOLUMES = "persistentvolumes"
CLASSES = "storageclasses"
EVENTS = "events"
KINDS = (JOBS, CHILDREN, PODS, CLAIMS, NODES, LEASES, VOLUMES, CLASSES)
_PREFIXES = {JOBS: "ftj", CHILDREN: "job", PODS: "pod", CLAIMS: "claim", NODES: "node"}

_PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?"
)


@dataclass(frozen=True)
class Change:
    """One change of an object, as a watch reports it."""

    plural: str
    type: str
    """ADDED, MODIFIED or DELETED."""
    body: Body
    before: Body | None
    """The object before the change; None for a new one."""


@lru_cache(maxsize=1024)
def read_path(path: str) -> tuple[str, str, str, str]:
    """Plural, namespace, name and subresource of a request's path; each may be empty but the first."""
    found = _PATH.fullmatch(path)
    assert found is not None, path
    return found["plural"], found["namespace"] or "", found["name"] or "", found["sub"] or ""


def refuse(status: int, reason: str, message: str, *, retry_after: int = 0) -> ApiError:
    """The client's error for a Status object of the API server."""
    document: dict[str, Any] = {"reason": reason, "message": message}
    if retry_after:
        document["details"] = {"retryAfterSeconds": retry_after}
    return _failure(status, document, str(retry_after) if retry_after else "")


@lru_cache(maxsize=65536)
def _stamp(seconds: int, start: datetime) -> str:
    return (start + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Server:
    """The objects of one cluster. Its clock is never wrong."""

    def __init__(self, clock: Callable[[], float], start: datetime) -> None:
        self._clock = clock
        self._start = start
        self.objects: dict[str, dict[Name, Body]] = {plural: {} for plural in KINDS}
        self.listeners: list[Callable[[Change], None]] = []
        self.version = 1000
        self._numbers = 0
        self.refusals: dict[str, ApiError] = {}
        """What admission answers to a POST of these objects."""
        self.tracked: set[str] = set()
        """uids of the pods with the finalizer of the Job controller."""

    # -- for every part of the cluster ---------------------------------------------------------------------------

    def stamp(self, ahead: float = 0.0) -> str:
        """The present time as Kubernetes writes it."""
        return _stamp(int(self._clock() + ahead), self._start)

    def get(self, plural: str, namespace: str, name: str) -> Body | None:
        """The object of this name; None if there is none."""
        return self.objects[plural].get((namespace, name))

    def all(self, plural: str) -> list[Body]:
        """All objects of one kind."""
        return list(self.objects[plural].values())

    def owned(self, plural: str, uid: str) -> Iterator[Body]:
        """The objects of one kind that this uid owns."""
        for body in self.all(plural):
            if any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences") or ()):
                yield body

    def create(self, plural: str, body: Mapping[str, Any], namespace: str = "") -> Body:
        """Store a new object. Raises ApiError if its name is taken."""
        name = body["metadata"]["name"]
        if (namespace, name) in self.objects[plural]:
            raise refuse(409, "AlreadyExists", f"{plural} {name} already exists")
        self._numbers += 1
        metadata = {
            **body["metadata"],
            "uid": f"{_PREFIXES.get(plural, plural)}-{self._numbers}",
            "creationTimestamp": self.stamp(),
            "generation": 1,
        }
        if namespace:
            metadata["namespace"] = namespace
        return self._store(plural, {"status": {"phase": "Pending"}, **body, "metadata": metadata}, None)

    def change(
        self, plural: str, body: Body, *, metadata: Mapping[str, Any] | None = None, **members: Any
    ) -> Body:
        """Replace members of a stored object. A change of nothing keeps its version."""
        merged = {**body["metadata"], **(metadata or {})}
        new = {**body, **members, "metadata": {key: each for key, each in merged.items() if each is not None}}
        if new == body:
            return body
        if "spec" in members and members["spec"] != body.get("spec"):
            new["metadata"]["generation"] = body["metadata"].get("generation", 1) + 1
        return self._store(plural, new, body)

    def current(self, plural: str, body: Body) -> Body | None:
        """The present state of this very object; None if it is gone."""
        metadata = body["metadata"]
        found = self.get(plural, metadata.get("namespace", ""), metadata["name"])
        return found if found is not None and found["metadata"]["uid"] == metadata["uid"] else None

    def remove(self, plural: str, body: Body) -> None:
        """Remove an object for good."""
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        gone = {**body, "metadata": metadata}
        del self.objects[plural][metadata.get("namespace", ""), metadata["name"]]
        self._report(Change(plural, "DELETED", gone, body))

    def delete(
        self, plural: str, body: Body, *, propagation: str = "Background", grace: int | None = None
    ) -> None:
        """Delete an object as a client asks: at once, or when its pod, its users or its dependents are gone."""
        metadata = body["metadata"]
        if plural == PODS:
            self._delete_pod(body, grace)
        elif plural == CLAIMS:
            if "deletionTimestamp" not in metadata:
                self.change(plural, body, metadata={"deletionTimestamp": self.stamp()})
        elif propagation != "Background" and plural in {JOBS, CHILDREN}:
            finalizer = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}[propagation]
            self.change(plural, body, metadata={"deletionTimestamp": self.stamp(), "finalizers": [finalizer]})
        else:
            self.remove(plural, body)

    def _delete_pod(self, body: Body, grace: int | None) -> None:
        uid = body["metadata"]["uid"]
        ended = body.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        seconds = body["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if ended or not body["spec"].get("nodeName"):
            seconds = 0
        if "deletionTimestamp" not in body["metadata"] or seconds == 0:
            deletion = {"deletionTimestamp": self.stamp(seconds), "deletionGracePeriodSeconds": seconds}
            body = self.change(PODS, body, metadata=deletion)
        if seconds == 0 and uid not in self.tracked:
            self.remove(PODS, body)

    def _store(self, plural: str, body: Body, before: Body | None) -> Body:
        self.version += 1
        metadata = body["metadata"]
        metadata["resourceVersion"] = str(self.version)
        self.objects[plural][metadata.get("namespace", ""), metadata["name"]] = body
        self._report(Change(plural, "ADDED" if before is None else "MODIFIED", body, before))
        return body

    def _report(self, change: Change) -> None:
        for listener in self.listeners:
            listener(change)

    # -- requests ------------------------------------------------------------------------------------------------

    def respond(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any]) -> Body:
        """The response to one request. Raises ApiError for any other than a success."""
        plural, namespace, name, sub = read_path(path)
        if plural == EVENTS:
            return (
                {"metadata": {"resourceVersion": str(self.version)}, "items": []} if not body else dict(body)
            )
        if method == "GET":
            return (
                self._list(plural, namespace, query)
                if not name
                else dict(self._find(plural, namespace, name))
            )
        if method == "POST":
            refusal = self.refusals.get(plural)
            if refusal is not None:
                raise refusal
            return dict(body) if query.get("dryRun") else self.create(plural, body, namespace)
        held = self._find(plural, namespace, name)
        if method == "DELETE":
            return self._respond_delete(plural, held, body)
        self._require_version(held, body["metadata"].get("resourceVersion"))
        if method == "PATCH" and not sub:
            return self._patch(plural, held, body)
        replaced = "status" if sub else "spec"
        return self.change(plural, held, **{replaced: body[replaced]})

    def _respond_delete(self, plural: str, held: Body, body: Mapping[str, Any]) -> Body:
        self._require_uid(held, body["preconditions"]["uid"], 409)
        self.delete(plural, held, propagation=body["propagationPolicy"], grace=body.get("gracePeriodSeconds"))
        return {"status": "Success"}

    def _patch(self, plural: str, held: Body, body: Mapping[str, Any]) -> Body:
        self._require_uid(held, body["metadata"].get("uid"), 422)
        annotations = {**held["metadata"].get("annotations", {}), **body["metadata"].get("annotations", {})}
        spec = {**held["spec"], **body["spec"]}
        metadata = {"annotations": annotations} if annotations else None
        return self.change(plural, held, metadata=metadata, spec=spec)

    def _read(self, plural: str, namespace: str, name: str, query: Mapping[str, str]) -> Body:
        return dict(self._find(plural, namespace, name)) if name else self._list(plural, namespace, query)

    def _find(self, plural: str, namespace: str, name: str) -> Body:
        found = self.get(plural, namespace, name)
        if found is None:
            raise refuse(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def _list(self, plural: str, namespace: str, query: Mapping[str, str]) -> Body:
        items = [
            body
            for body in self.all(plural)
            if (not namespace or body["metadata"].get("namespace") == namespace)
            and selects(query.get("labelSelector", ""), body["metadata"].get("labels") or {})
            and (plural != JOBS or selects_end(query.get("fieldSelector", ""), body))
        ]
        metadata: dict[str, Any] = {"resourceVersion": str(self.version)}
        start = int(query.get("continue") or 0)
        end = start + int(query.get("limit", 500))
        if end < len(items):
            metadata["continue"] = str(end)
        return {"metadata": metadata, "items": items[start:end]}

    @staticmethod
    def _require_uid(held: Body, uid: str | None, status: int) -> None:
        if uid is not None and uid != held["metadata"]["uid"]:
            raise refuse(status, "Conflict" if status == 409 else "Invalid", "the object has another uid")

    @staticmethod
    def _require_version(held: Body, version: str | None) -> None:
        if version is not None and version != held["metadata"]["resourceVersion"]:
            raise refuse(409, "Conflict", "the object has been modified")


def selects_end(selector: str, body: Mapping[str, Any]) -> bool:
    """True if a field selector for the presence of `status.completionTime` selects this FineTuneJob."""
    ended = bool((body.get("status") or {}).get("completionTime"))
    return {"": True, UNFINISHED: not ended, ENDED: ended}[selector]


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """True if a selector of one requirement (`key`, `key=value` or `key in (a,b)`) selects these labels."""
    if not selector:
        return True
    key, _, values = selector.partition(" in ")
    if values:
        return labels.get(key) in values.strip("()").split(",")
    key, equals, value = selector.partition("=")
    return labels.get(key) == value if equals else key in labels
