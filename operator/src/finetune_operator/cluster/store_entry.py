"""What the store knows about one FineTuneJob, and where it keeps that of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from finetune_operator.contract.result import Progress
from finetune_operator.observed.movement import Movement
from finetune_operator.observed.observation import ChildJob, Claim, Key, Pod, Rejection
from finetune_operator.observed.packed import PackedJob, StoredJob, unpacked
from finetune_operator.observed.warnings import Unstarted, unstarted

REMEMBERED_JOBS = 32
"""Former Jobs of one FineTuneJob whose pods a fresh read looks for. Each adds its uid to the request."""


@dataclass(frozen=True)
class Identities:
    """The objects of one FineTuneJob that a fresh read must look for even if they have lost their label."""

    job_names: frozenset[str]
    """Names of its batch/v1 Jobs."""
    job_uids: frozenset[str]
    """uids of its batch/v1 Jobs, including former ones and those that only a pod names."""
    claim_uids: frozenset[str]
    """uids of its claim, and of that of an earlier FineTuneJob of the same name."""


@dataclass(slots=True)
class Entry:
    """A FineTuneJob and the objects that belong to it or to an earlier one of the same name, each by its uid."""

    job: StoredJob | None = None
    children: dict[str, ChildJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    progress: Progress | None = None
    movement: Movement | None = None
    refusals: dict[str, Rejection] = field(default_factory=dict)
    """The last refusal of each action, by `lifecycle.refusals.action_key`."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Why a Job has no pod, or why a pod does not run, by uid."""
    image_pulls: dict[str, float] = field(default_factory=dict)
    """Seconds for which pods waited for the trainer's image, by uid."""
    last_read: datetime | None = None
    former_jobs: dict[str, None] = field(default_factory=dict)
    """uids of its last batch/v1 Jobs, oldest first. A pod that outlives its Job may lose its label."""

    @property
    def empty(self) -> bool:
        """True if neither the FineTuneJob nor an object of it is known."""
        return self.job is None and not (self.children or self.pods or self.claims)

    @property
    def settled(self) -> bool:
        """True if the job has ended, the decision about that is in its status, and nothing of it is left."""
        known = self.children or self.pods or self.claims or self.refusals
        return isinstance(self.job, PackedJob) and self.job.decided and not known

    @property
    def unowned_work(self) -> bool:
        """True if a Job or a pod has not ended, but the FineTuneJob is not known. Such a pod may hold a GPU."""
        jobs = any(not child.finished for child in self.children.values())
        pods = any(pod.phase not in {"Succeeded", "Failed"} for pod in self.pods.values())
        return self.job is None and (jobs or pods)

    def claim(self, *, own: bool) -> Claim | None:
        """The workspace's claim of this FineTuneJob, or with `own=False` that of an earlier one; None if unknown."""
        uid = "" if self.job is None else self.job.uid
        return next((claim for claim in self.claims.values() if (claim.owner_uid == uid) is own), None)

    def identities(self) -> Identities:
        """The objects that are known by name or by uid, also if they belong to an earlier FineTuneJob."""
        names = {child.name for child in self.children.values()}
        status = {} if self.job is None else unpacked(self.job).status
        recorded = (status.get("stage") or {}).get("jobName")
        names |= {recorded} if isinstance(recorded, str) else set()
        uids = {child.uid for child in self.children.values()} | {pod.owner_uid for pod in self.pods.values()}
        return Identities(frozenset(names), frozenset(uids.union(self.former_jobs)), frozenset(self.claims))

    def remember_job(self, uid: str) -> None:
        """Remember a batch/v1 Job, so that its pods are found after it is gone."""
        self.former_jobs.pop(uid, None)
        self.former_jobs[uid] = None
        if len(self.former_jobs) > REMEMBERED_JOBS:
            del self.former_jobs[next(iter(self.former_jobs))]

    def unstarted(self, now: datetime) -> list[Unstarted]:
        """The Jobs and pods that should have started by `now` and whose state does not say why they have not."""
        if self.job is None:
            return []
        children = [child for child in self.children.values() if child.owner_uid == self.job.uid]
        return unstarted(children, self.pods.values(), self.claim(own=True), now)

    def running_pods(self) -> list[tuple[StoredJob, ChildJob, Pod]]:
        """Every pod whose trainer runs and has an address, with the FineTuneJob and its batch/v1 Job.

        Of several pods that run at the same time, only the first one tells progress.
        """
        found = []
        for pod in self.pods.values():
            child = self.children.get(pod.owner_uid)
            if self.job is None or child is None or child.owner_uid != self.job.uid:
                continue
            if pod.running and pod.ip and pod.index == 0:
                found.append((self.job, child, pod))
        return found


class Entries:
    """The entries of all FineTuneJobs, by namespace: a list of one namespace must not visit those of all others."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[Key, Entry]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._namespaces.values()))

    def __getitem__(self, key: Key) -> Entry:
        return self._namespaces[key[0]][key]

    def get(self, key: Key) -> Entry | None:
        """The entry of one FineTuneJob; None if nothing is known."""
        return self._namespaces.get(key[0], {}).get(key)

    def at(self, key: Key) -> Entry:
        """The entry of one FineTuneJob, a new one if nothing is known."""
        return self._namespaces.setdefault(key[0], {}).setdefault(key, Entry())

    def keys(self, namespace: str = "") -> list[Key]:
        """The keys of one namespace, or of all."""
        found = self._namespaces.values() if not namespace else [self._namespaces.get(namespace, {})]
        return [key for entries in found for key in entries]

    def items(self, namespace: str = "") -> Iterator[tuple[Key, Entry]]:
        """The entries of one namespace, or of all. They must not change meanwhile."""
        found = self._namespaces.values() if not namespace else [self._namespaces.get(namespace, {})]
        return chain.from_iterable(entries.items() for entries in found)

    def drop(self, key: Key) -> None:
        """Remove the entry of one FineTuneJob."""
        entries = self._namespaces[key[0]]
        del entries[key]
        if not entries:
            del self._namespaces[key[0]]
