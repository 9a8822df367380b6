"""The objects that the watches have reported, by FineTuneJob: small projections, never whole objects.

An older resourceVersion never replaces a newer one, and an answer that comes after the deletion of its object does not
bring the object back. The operator's own writes come from the API server's responses, so earlier events undo none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store_entry import Entries, Entry, Identities
from finetune_operator.cluster.tombstones import Tombstones
from finetune_operator.contract.result import Progress
from finetune_operator.observed.movement import Movement
from finetune_operator.observed.observation import (
    CREATION,
    ChildJob,
    Claim,
    JobRecord,
    Key,
    Observation,
    Pod,
    Rejection,
)
from finetune_operator.observed.packed import Packer, StoredJob, unpacked
from finetune_operator.observed.warnings import Unstarted


class _Stored(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


def is_newer(new: _Stored, held: _Stored | None) -> bool:
    """True if `new` may replace `held`, because its version is newer.

    An equal version is the same object, about which the store may know more: that a delete was accepted.
    """
    return held is None or _version(new) > _version(held)


class Store:
    """All FineTuneJobs with their children, and the GPUs of `gpus`. Use it from one thread only."""

    def __init__(
        self, gpus: GpuStore, changed: Callable[[JobRecord, JobRecord], None] = lambda _old, _new: None
    ) -> None:
        """`changed` is called with the earlier and the new state of a FineTuneJob that is already known."""
        self._changed = changed
        self._reported: set[Key] = set()
        """FineTuneJobs that had series in the last scrape, and those that have changed since."""
        self._entries = Entries()
        self._gpus = gpus
        self._keys: dict[str, Key] = {}
        self._busy: set[Key] = set()
        """FineTuneJobs with a Job or a pod: few, while the others may be many thousands."""
        self._deleted = Tombstones()
        self._packer = Packer()

    def put_job(self, job: JobRecord) -> bool:
        """Store a FineTuneJob; returns True if it is newer than what is known.

        A new one of the same name does not inherit the old one's progress.
        """
        if not self._deleted.allows(job.uid, _version(job)):
            return False
        entry = self._entries.at(job.key)
        if not is_newer(job, entry.job):
            return False
        if entry.job is not None and entry.job.uid != job.uid:
            entry.progress = entry.movement = entry.last_read = None
            entry.refusals = {}
        elif entry.job is not None:
            self._changed(unpacked(entry.job), job)
        entry.job = self._packer.pack(job)
        self._reported.add(job.key)
        return True

    def put_child(self, key: Key, child: ChildJob) -> bool:
        """Store a batch/v1 Job; returns True if it is newer than what is known, as the next two methods do."""
        return self._put(key, "children", child)

    def put_pod(self, key: Key, pod: Pod) -> bool:
        """Store a pod."""
        return self._put(key, "pods", pod)

    def put_claim(self, key: Key, claim: Claim) -> bool:
        """Store a workspace claim."""
        return self._put(key, "claims", claim)

    def remove_job(self, key: Key, uid: str, version: int = 0) -> None:
        """Remove a FineTuneJob, unless a new one of the same name has replaced it.

        `version` is that of the watch's report, here and in the other methods that remove; 0 if there is none.
        """
        if version:
            self._deleted.add(uid, version)
        entry = self._entries.get(key)
        if entry is not None and entry.job is not None and entry.job.uid == uid:
            entry.job = entry.progress = entry.movement = None
            entry.refusals = {}
        self._drop_if_empty(key)

    def remove_child(self, key: Key, uid: str, version: int = 0) -> None:
        """Remove a batch/v1 Job."""
        self._remove(key, uid, "children", version)

    def remove_pod(self, key: Key, uid: str, version: int = 0) -> None:
        """Remove a pod."""
        self._remove(key, uid, "pods", version)

    def remove_claim(self, key: Key, uid: str, version: int = 0) -> None:
        """Remove a workspace claim."""
        self._remove(key, uid, "claims", version)

    def disown(self, uid: str, version: int) -> Key | None:
        """Remove an object that no FineTuneJob controls at `version`; returns the key of the one that lost it."""
        key = self._keys.get(uid)
        if key is not None:
            for kind in ("children", "pods", "claims"):
                self._remove(key, uid, kind)
            self._deleted.add(uid, version)
        return key

    def identities(self, key: Key) -> Identities:
        """The Jobs of one FineTuneJob that are known by name or by uid, also if they belong to an earlier one."""
        return (self._entries.get(key) or Entry()).identities()

    def replace_children(
        self,
        key: Key,
        known: Identities,
        children: Iterable[ChildJob],
        pods: Iterable[Pod],
        claim: Claim | None,
        versions: tuple[int, int],
        now: datetime,
    ) -> None:
        """Replace children, pods and the workspace's claim of one job by those of a fresh read at `now`.

        `known` is what was known before the read. `versions` are those of the lists of Jobs and pods. Whatever the watch
        has reported since is kept.
        """
        self._entries.at(key).last_read = now
        for kind, found, version in (("children", children, versions[0]), ("pods", pods, versions[1])):
            listed = {item.uid: item for item in found}
            held: dict[str, _Stored] = getattr(self._entries.at(key), kind)
            for uid in [uid for uid, item in held.items() if uid not in listed and _version(item) <= version]:
                self._remove(key, uid, kind)
            for item in listed.values():
                self._put(key, kind, item)
        if claim is not None:
            self._put(key, "claims", claim)
        for uid in known.claim_uids - {"" if claim is None else claim.uid}:
            # There is one name for the claim, so the one that was known before the read is gone.
            self._remove(key, uid, "claims")
        self._drop_if_empty(key)

    def set_progress(self, key: Key, progress: Progress) -> bool:
        """Store a trainer's report; returns True if it is new. A deleted job ignores it."""
        entry = self._entries.get(key)
        if entry is None or entry.job is None or entry.progress == progress:
            return False
        entry.progress = progress
        return True

    def movement(self, key: Key) -> Movement | None:
        """What the polls of the job's last trainer have shown; None if none has answered."""
        entry = self._entries.get(key)
        return None if entry is None else entry.movement

    def set_movement(self, key: Key, movement: Movement | None) -> None:
        """Store what the polls of a trainer have shown. A deleted job ignores it."""
        entry = self._entries.get(key)
        if entry is not None and entry.job is not None:
            entry.movement = movement

    def set_warning(self, key: Key, uid: str, warning: str) -> bool:
        """Store why a Job has no pod, or why a pod does not run; empty if nothing is known. Returns True if it is new."""
        entry = self._entries.get(key)
        if entry is None or not (uid in entry.children or uid in entry.pods):
            return False
        if entry.warnings.get(uid, "") == warning:
            return False
        entry.warnings.pop(uid, None)
        if warning:
            entry.warnings[uid] = warning
        return True

    def warning(self, key: Key, uid: str) -> str:
        """What `set_warning` has stored; empty without it."""
        entry = self._entries.get(key)
        return "" if entry is None else entry.warnings.get(uid, "")

    def unstarted(self, now: datetime) -> dict[Key, list[Unstarted]]:
        """The children that should have started by `now` and whose state does not say why they have not."""
        found = {key: self._entries[key].unstarted(now) for key in self._busy}
        return {key: children for key, children in found.items() if children}

    def set_refusal(self, key: Key, action: str, refusal: Rejection | None) -> None:
        """Store or clear the last refusal of one action (`lifecycle.refusals.action_key`)."""
        entry = self._entries.get(key)
        if entry is None:
            return
        if refusal is None:
            entry.refusals.pop(action, None)
        else:
            entry.refusals[action] = refusal

    def set_retry_time(self, key: Key, action: str, time: datetime) -> bool:
        """Change the time at which a refused action is tried again; False if it is not refused any more."""
        entry = self._entries.get(key)
        refusal = None if entry is None else entry.refusals.get(action)
        if entry is None or refusal is None:
            return False
        entry.refusals[action] = replace(refusal, retry_time=time)
        return True

    def observe(self, key: Key, *, fresh: bool = False) -> Observation | None:
        """Everything that is known about one FineTuneJob; None if it does not exist."""
        entry = self._entries.get(key)
        if entry is None or entry.job is None:
            return None
        return Observation(
            job=unpacked(entry.job),
            inventory=self._gpus.inventory,
            children=tuple(entry.children.values()),
            pods=tuple(entry.pods.values()),
            claim=entry.claim(own=True),
            previous_claim=entry.claim(own=False),
            progress=entry.progress,
            movement=entry.movement,
            rejection=entry.refusals.get(CREATION),
            refusals={name: each for name, each in entry.refusals.items() if name != CREATION},
            warnings=dict(entry.warnings),
            image_pulls=dict(entry.image_pulls),
            fresh=fresh,
            last_read=entry.last_read,
            had_jobs=bool(entry.former_jobs),
        )

    def has_job(self, key: Key, uid: str) -> bool:
        """True if the FineTuneJob of this name exists and has this uid, as far as is known."""
        entry = self._entries.get(key)
        return entry is not None and entry.job is not None and entry.job.uid == uid

    def job_keys(self) -> list[Key]:
        """Keys of all FineTuneJobs."""
        return [key for key, entry in self._entries.items() if entry.job is not None]

    def is_settled(self, key: Key) -> bool:
        """True if there is nothing to decide about this FineTuneJob until something of it changes."""
        entry = self._entries.get(key)
        return entry is not None and entry.settled

    def unsettled_keys(self, namespace: str = "") -> list[Key]:
        """Keys of the FineTuneJobs of one namespace, or of all, that need a decision even if nothing has changed."""
        entries = self._entries.items(namespace)
        return [key for key, entry in entries if entry.job is not None and not entry.settled]

    def keys_without_gpu(self) -> list[Key]:
        """Keys of the FineTuneJobs whose next decision depends on the GPUs of the cluster."""
        return [key for key, entry in self._entries.items() if entry.job is not None and entry.job.lacks_gpu]

    def reported(self, since: datetime) -> list[StoredJob]:
        """The FineTuneJobs that have not ended, and those that have ended after `since`."""
        found: list[StoredJob] = []
        for key in list(self._reported):
            entry = self._entries.get(key)
            job = None if entry is None else entry.job
            end = None if job is None else job.completed
            if job is None or (end is not None and end < since):
                self._reported.discard(key)
            else:
                found.append(job)
        return found

    def phases(self) -> Counter[str]:
        """The number of FineTuneJobs by phase."""
        return Counter(entry.job.phase for _, entry in self._entries.items() if entry.job is not None)

    def busy(self) -> list[Entry]:
        """What is known about each FineTuneJob with a Job or a pod."""
        return [self._entries[key] for key in self._busy]

    def keys_of_unowned_work(self) -> list[Key]:
        """Keys of Jobs and pods that have not ended and whose FineTuneJob is not known."""
        return [key for key in self._busy if self._entries[key].unowned_work]

    def running_pods(self) -> list[tuple[StoredJob, ChildJob, Pod]]:
        """Every pod whose trainer runs and has an address, with its FineTuneJob and its batch/v1 Job."""
        return [found for key in self._busy for found in self._entries[key].running_pods()]

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

    def purge(self, kind: str, listed: set[str], version: int, namespace: str = "") -> list[Key]:
        """Remove objects that a full LIST at `version` does not contain, because the watch missed their deletion.

        The list is that of one namespace, or of all. `kind` is jobs, children, pods or claims; `listed` contains uids.
        Objects newer than the list stay. So do those without the label that the list selects, unless their FineTuneJob is
        gone. Returns the keys of the FineTuneJobs that lost an object.
        """
        changed = []
        # Most FineTuneJobs have ended and own nothing, so objects are looked for where they are.
        every = kind == "jobs" or namespace
        for key in self._entries.keys(namespace) if every else dict.fromkeys(self._keys.values()):
            entry = self._entries[key]
            if kind == "jobs":
                job = entry.job
                if job is not None and job.uid not in listed and _version(job) <= version:
                    self.remove_job(key, job.uid)
                    changed.append(key)
                continue
            held: dict[str, ChildJob | Pod | Claim] = getattr(entry, kind)
            old = [uid for uid, item in held.items() if uid not in listed and _version(item) <= version]
            missed = [uid for uid in old if held[uid].watched or entry.job is None]
            for uid in missed:
                self._remove(key, uid, kind)
            if missed:
                changed.append(key)
        return changed

    def forget(self, namespace: str) -> list[Key]:
        """Remove everything of one namespace, which cannot be read any more; returns the keys of its FineTuneJobs.

        Nothing is known to be deleted: the objects come back with the next list.
        """
        keys = self._entries.keys(namespace)
        for key in keys:
            entry = self._entries[key]
            self._entries.drop(key)
            for uid in (*entry.children, *entry.pods, *entry.claims):
                self._keys.pop(uid, None)
            self._busy.discard(key)
            self._reported.discard(key)
        return keys

    def _put(self, key: Key, kind: str, new: ChildJob | Pod | Claim) -> bool:
        if not self._deleted.allows(new.uid, _version(new)):
            return False
        held: dict[str, ChildJob | Pod | Claim] = getattr(self._entries.at(key), kind)
        if not is_newer(new, held.get(new.uid)):
            return False
        held[new.uid] = new
        self._keys[new.uid] = key
        if not isinstance(new, Claim):
            self._busy.add(key)
            self._entries.at(key).remember_job(new.uid if isinstance(new, ChildJob) else new.owner_uid)
        return True

    def _remove(self, key: Key, uid: str, kind: str, version: int = 0) -> None:
        """Remove an object. One that was read without its label at `version` or later still exists."""
        if version:
            self._deleted.add(uid, version)
        entry = self._entries.get(key)
        held: dict[str, ChildJob | Pod | Claim] = {} if entry is None else getattr(entry, kind)
        item = held.get(uid)
        if item is not None and not (version and not item.watched and _version(item) >= version):
            del held[uid]
            self._keys.pop(uid, None)
            if entry is not None:
                entry.warnings.pop(uid, None)
                if not (entry.children or entry.pods):
                    self._busy.discard(key)
                    if entry.job is not None and entry.job.completed is not None:
                        entry.former_jobs.clear()
        self._drop_if_empty(key)

    def _drop_if_empty(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.empty:
            self._entries.drop(key)


def _version(item: _Stored) -> int:
    """Resource versions of one kind are comparable numbers, as Kubernetes 1.35 documents."""
    return int(item.resource_version)
