"""The objects that the watches have reported, by FineTuneJob: small projections, never whole objects.

An older resourceVersion never replaces a newer one. The operator stores its own writes from the API server's responses,
so events that were sent earlier do not undo them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.contract.result import Progress
from finetune_operator.observed.observation import (
    ChildJob,
    Claim,
    JobRecord,
    Key,
    Observation,
    Pod,
    Rejection,
    lacks_gpu,
)


class _Stored(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


_Any = TypeVar("_Any", ChildJob, Claim, Pod)


def is_newer(new: _Stored, held: _Stored | None) -> bool:
    """True if `new` may replace `held`, because its version is not older."""
    return held is None or _version(new) >= _version(held)


@dataclass
class _Entry:
    job: JobRecord | None = None
    children: dict[str, ChildJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    progress: Progress | None = None
    rejection: Rejection | None = None

    @property
    def empty(self) -> bool:
        return self.job is None and not (self.children or self.pods or self.claims)


class Store:
    """All FineTuneJobs with their children, and the GPUs of `gpus`. Use it from one thread only."""

    def __init__(self, gpus: GpuStore) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._gpus = gpus

    def put_job(self, job: JobRecord) -> None:
        """Store a FineTuneJob. A new one of the same name does not inherit the old one's progress."""
        entry = self._entry(job.key)
        if entry.job is not None and entry.job.uid != job.uid:
            entry.progress = entry.rejection = None
        if is_newer(job, entry.job):
            entry.job = job

    def put_child(self, key: Key, child: ChildJob) -> None:
        """Store a batch/v1 Job."""
        _put(self._entry(key).children, child)

    def put_pod(self, key: Key, pod: Pod) -> None:
        """Store a pod."""
        _put(self._entry(key).pods, pod)

    def put_claim(self, key: Key, claim: Claim) -> None:
        """Store a workspace claim."""
        _put(self._entry(key).claims, claim)

    def remove_job(self, key: Key, uid: str) -> None:
        """Remove a FineTuneJob, unless a new one of the same name has replaced it."""
        entry = self._entries.get(key)
        if entry is not None and entry.job is not None and entry.job.uid == uid:
            entry.job = entry.progress = entry.rejection = None
        self._drop_if_empty(key)

    def remove_child(self, key: Key, uid: str) -> None:
        """Remove a batch/v1 Job."""
        self._remove(key, uid, "children")

    def remove_pod(self, key: Key, uid: str) -> None:
        """Remove a pod."""
        self._remove(key, uid, "pods")

    def remove_claim(self, key: Key, uid: str) -> None:
        """Remove a workspace claim."""
        self._remove(key, uid, "claims")

    def replace_children(self, key: Key, children: Iterable[ChildJob], pods: Iterable[Pod]) -> None:
        """Replace the children and pods of one job by those of a fresh read."""
        entry = self._entry(key)
        entry.children = {child.uid: child for child in children}
        entry.pods = {pod.uid: pod for pod in pods}
        self._drop_if_empty(key)

    def set_progress(self, key: Key, progress: Progress) -> bool:
        """Store a trainer's report; returns True if it is new. A deleted job ignores it."""
        entry = self._entries.get(key)
        if entry is None or entry.job is None or entry.progress == progress:
            return False
        entry.progress = progress
        return True

    def set_rejection(self, key: Key, rejection: Rejection | None) -> None:
        """Store or clear the last rejection of a child."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.rejection = rejection

    def observe(self, key: Key, *, fresh: bool = False) -> Observation | None:
        """Everything that is known about one FineTuneJob; None if it does not exist."""
        entry = self._entries.get(key)
        if entry is None or entry.job is None:
            return None
        job = entry.job
        claim = next((claim for claim in entry.claims.values() if claim.owner_uid == job.uid), None)
        return Observation(
            job=job,
            inventory=self._gpus.inventory,
            children=tuple(entry.children.values()),
            pods=tuple(entry.pods.values()),
            claim=claim,
            progress=entry.progress,
            rejection=entry.rejection,
            fresh=fresh,
        )

    def job_keys(self) -> list[Key]:
        """Keys of all FineTuneJobs."""
        return [key for key, entry in self._entries.items() if entry.job is not None]

    def keys_without_gpu(self) -> list[Key]:
        """Keys of the FineTuneJobs whose next decision depends on the GPUs of the cluster."""
        return [
            key
            for key, entry in self._entries.items()
            if entry.job is not None and lacks_gpu(entry.job.status)
        ]

    def jobs(self) -> Iterator[JobRecord]:
        """All FineTuneJobs."""
        return (entry.job for entry in self._entries.values() if entry.job is not None)

    def running_pods(self) -> list[tuple[JobRecord, ChildJob, Pod]]:
        """Every pod whose trainer runs and has an address, with its FineTuneJob and its batch/v1 Job."""
        found = []
        for entry in self._entries.values():
            if entry.job is None:
                continue
            for pod in entry.pods.values():
                child = entry.children.get(pod.owner_uid)
                if pod.running and pod.ip and child is not None and child.owner_uid == entry.job.uid:
                    found.append((entry.job, child, pod))
        return found

    def mark_child_deleting(self, key: Key, uid: str) -> None:
        """Record that the API server has accepted a delete, before the watch reports it."""
        entry = self._entries.get(key)
        if entry is not None and uid in entry.children:
            entry.children[uid] = replace(entry.children[uid], deleting=True)

    def mark_claim_deleting(self, key: Key, uid: str) -> None:
        """Record that the API server has accepted a delete, before the watch reports it."""
        entry = self._entries.get(key)
        if entry is not None and uid in entry.claims:
            entry.claims[uid] = replace(entry.claims[uid], deleting=True)

    def purge(self, kind: str, listed: set[str], version: int) -> list[Key]:
        """Remove objects that a full LIST at `version` does not contain, because the watch missed their deletion.

        `kind` is jobs, children, pods or claims; `listed` contains uids. Objects newer than the list stay. Returns the
        keys of the FineTuneJobs that lost an object.
        """
        changed = []
        for key, entry in list(self._entries.items()):
            if kind == "jobs":
                job = entry.job
                if job is not None and job.uid not in listed and _version(job) <= version:
                    self.remove_job(key, job.uid)
                    changed.append(key)
                continue
            held: dict[str, _Stored] = getattr(entry, kind)
            missed = [uid for uid, item in held.items() if uid not in listed and _version(item) <= version]
            for uid in missed:
                self._remove(key, uid, kind)
            if missed:
                changed.append(key)
        return changed

    def _entry(self, key: Key) -> _Entry:
        return self._entries.setdefault(key, _Entry())

    def _remove(self, key: Key, uid: str, kind: str) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            getattr(entry, kind).pop(uid, None)
        self._drop_if_empty(key)

    def _drop_if_empty(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.empty:
            del self._entries[key]


def _put(held: dict[str, _Any], new: _Any) -> None:
    if is_newer(new, held.get(new.uid)):
        held[new.uid] = new


def _version(item: _Stored) -> int:
    """Resource versions of one kind are comparable numbers, as Kubernetes 1.35 documents."""
    return int(item.resource_version)
