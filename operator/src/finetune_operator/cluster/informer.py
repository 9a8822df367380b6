"""Keeps the store up to date: by watch events, by full lists at start and every few minutes, and by fresh reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from finetune_operator.api.stages import workspace_claim_name
from finetune_operator.cluster.client import ObjectList
from finetune_operator.cluster.concurrency import each_at_once
from finetune_operator.cluster.ended_jobs import ENDED, SHARE, UNFINISHED, cannot_select
from finetune_operator.cluster.listed_versions import ListedVersions
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import (
    NODES_PATH,
    Cluster,
    batch_jobs_path,
    claims_path,
    job_sets_path,
    jobs_path,
    pods_path,
)
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.contract.bounded import clean_text
from finetune_operator.errors import ApiError
from finetune_operator.observed.lost_nodes import lost_node
from finetune_operator.observed.observation import ChildJob, Key
from finetune_operator.observed.ownership import key_of
from finetune_operator.observed.projection import project_child, project_claim, project_job, project_pod
from finetune_operator.observed.urgency import Urgency, child_urgency, job_urgency, pod_urgency
from finetune_operator.sizing.gpus.nodes import project_node

Body = Mapping[str, Any]

MAXIMUM_READS = 3
"""Reads of the children of one job until what was read and what the watches have shown agree."""
NODE_DELAY = 0.2
"""Seconds in which node changes are collected, because a node group joins and leaves as a whole."""

FILL_DELAY = 15.0
"""Seconds after which a failed list of ended FineTuneJobs is tried again."""

_PATHS = {"jobs": jobs_path, "children": batch_jobs_path, "pods": pods_path, "claims": claims_path}
"""The path of each kind, by namespace."""
_logger = logging.getLogger(__name__)


class Informer:
    """Feeds the store and the queue. Its event methods do no I/O."""

    def __init__(
        self,
        store: Store,
        gpus: GpuStore,
        queue: WorkQueue[Key],
        cluster: Cluster,
        namespaces: Sequence[str] = (),
    ) -> None:
        """`namespaces` are the only ones to serve; empty for all."""
        self._store = store
        self._queue = queue
        self._cluster = cluster
        self.namespaces = tuple(namespaces)
        self.refused: dict[str, str] = {}
        """Why the API server does not let the operator read a namespace: it does not exist, or it has no Role."""
        self.on_refusal: Callable[[str], None] = _ignore
        """Called with each namespace that becomes refused."""
        self._gpus = gpus
        self._waking = False
        self._changes: dict[Key, Urgency] = {}
        """What has changed of each FineTuneJob since it was last queued."""
        self.listed = ListedVersions()
        """From where the watches go on."""
        self.seeded = False
        self.filled = False
        """The store also has the FineTuneJobs that have ended."""
        self.missed_deletions = 0
        """Number of objects whose deletion the watches have missed."""

    @property
    def served(self) -> dict[str, bool]:
        """Whether each of the namespaces can be read; empty if all are served together."""
        return {namespace: namespace not in self.refused for namespace in self.namespaces}

    # -- single objects -----------------------------------------------------------------------------------------

    def put_job(self, body: Body, *, deleted: bool = False) -> Key:
        """Store a FineTuneJob or its deletion; returns its key."""
        job = project_job(body)
        if deleted:
            self._store.remove_job(job.key, job.uid, int(job.resource_version))
            self._note(job.key, Urgency.ENDING)
        elif self._store.put_job(job):
            self._note(job.key, job_urgency(job))
        return job.key

    def put_child(self, body: Body, *, deleted: bool = False) -> Key | None:
        """Store a batch/v1 Job or a JobSet, or its deletion; returns the key of its FineTuneJob, None if it has none."""
        key, child = key_of(body), project_child(body)
        if key is None or child is None:
            return self._disown(body)
        if deleted:
            self._store.remove_child(key, child.uid, int(child.resource_version))
            self._note(key, Urgency.ENDING)
        elif self._store.put_child(key, child):
            self._note(key, child_urgency(child))
        return key

    def put_pod(self, body: Body, *, deleted: bool = False) -> Key | None:
        """Store a pod or its deletion; returns the key of its FineTuneJob, None if it has none."""
        key, pod = key_of(body), project_pod(body)
        if key is None or pod is None:
            return self._disown(body)
        if deleted:
            self._store.remove_pod(key, pod.uid, int(pod.resource_version))
            self._note(key, Urgency.ENDING)
        elif self._store.put_pod(key, pod):
            self._note(key, pod_urgency(pod))
        return key

    def put_claim(self, body: Body, *, deleted: bool = False) -> Key | None:
        """Store a claim or its deletion; returns the key of its FineTuneJob, None if it has none."""
        key, claim = key_of(body), project_claim(body)
        if key is None or claim is None:
            return self._disown(body)
        if deleted:
            self._store.remove_claim(key, claim.uid, int(claim.resource_version))
            self._note(key, Urgency.ENDING)
        elif self._store.put_claim(key, claim):
            self._note(key, Urgency.PROGRESS)
        return key

    def _disown(self, body: Body) -> Key | None:
        metadata = body["metadata"]
        key = self._store.disown(metadata["uid"], int(metadata["resourceVersion"]))
        if key is not None:
            self._note(key, Urgency.ENDING)
        return key

    def _note(self, key: Key, urgency: Urgency) -> None:
        self._changes[key] = min(urgency, self._changes.get(key, urgency))

    def put_node(self, body: Body, *, deleted: bool = False) -> None:
        """Store a node or its deletion. If the GPUs that jobs have asked for change, these jobs are reconciled."""
        node = project_node(body)
        version = int(node.resource_version)
        if self._gpus.remove(node.name, node.uid, version) if deleted else self._gpus.put(node):
            self._wake_without_gpu()

    def wake(self, key: Key | None) -> None:
        """Queue the FineTuneJob of this key, with the urgency of what has changed since it was last queued.

        A settled one is queued only if something has changed. The list of a watch may name tens of thousands of them.
        """
        if key is not None and (key in self._changes or not self._store.is_settled(key)):
            self._queue.add(key, self._changes.pop(key, Urgency.RESYNC))

    # -- lists --------------------------------------------------------------------------------------------------

    async def seed(self) -> None:
        """Read all that decisions need: everything but FineTuneJobs that have ended, which `fill` reads."""
        await self._synchronize_all(unfinished=True)
        for key in self._store.keys_of_unowned_work():
            # This one has ended, and a pod of it may still hold a GPU.
            body = await self._cluster.read_job(key)
            if body is not None:
                self.put_job(body)
        self.seeded = True
        self._queue_unsettled()

    async def fill(self) -> None:
        """Read the FineTuneJobs that have ended, slowly, and queue those that are not settled.

        The watch reports every change since `seed`, so one that is not listed is not gone.
        """
        for namespace in self.namespaces or ("",):
            if namespace in self.refused:
                continue
            try:
                await self._cluster.list_jobs(namespace, self.put_job, fields=ENDED, share=SHARE)
            except ApiError as error:
                # A namespace that is refused is listed as a whole when it can be read again.
                if not (cannot_select(error) or (namespace and error.status == 403)):
                    raise
        self.filled = True
        self._queue_unsettled()

    async def synchronize(self, share: float = 1.0) -> None:
        """Read all objects, remove deleted ones from the store, and queue every FineTuneJob that is not settled.

        FineTuneJobs are read in this share of the time.
        """
        await self._synchronize_all(share=share)
        self.seeded = self.filled = True
        self._queue_unsettled()

    async def _synchronize_all(self, *, unfinished: bool = False, share: float = 1.0) -> None:
        read = partial(self._synchronize, unfinished=unfinished, share=share)
        if self.namespaces:
            await each_at_once(partial(self._read_unless_refused, read), self.namespaces)
        else:
            await read("")
        await self._synchronize_nodes()

    def _queue_unsettled(self, namespace: str = "") -> None:
        for key in self._store.unsettled_keys(namespace):
            self.wake(key)
        if not namespace:
            # Changes of settled FineTuneJobs and of objects without one need no decision.
            self._changes.clear()

    async def synchronize_namespace(self, namespace: str) -> bool:
        """Read one namespace; returns False if it is refused. Then nothing is known about it, and others go on."""
        return await self._read_unless_refused(self._synchronize, namespace)

    async def _read_unless_refused(self, read: Callable[[str], Awaitable[object]], namespace: str) -> bool:
        try:
            await read(namespace)
        except ApiError as error:
            if error.status != 403:
                raise
            self._refuse(namespace, clean_text(error.message)[:300])
            return False
        if self.refused.pop(namespace, None) is not None:
            _logger.info("namespace %s is served", namespace)
        self._queue_unsettled(namespace)
        return True

    def _refuse(self, namespace: str, message: str) -> None:
        """Forget a namespace. Its state is in the cluster, so nothing is lost."""
        for path in (*_PATHS.values(), job_sets_path):
            self.listed.forget(path(namespace))
        for key in self._store.forget(namespace):
            self.wake(key)
        if namespace not in self.refused:
            _logger.warning(
                "namespace %s must exist and have the operator's Role, but the API server refuses to list it (%s); it is "
                "tried again, and the others are served",
                namespace,
                message,
            )
            self.refused[namespace] = message
            self.on_refusal(namespace)

    async def _synchronize(self, namespace: str, *, unfinished: bool = False, share: float = 1.0) -> None:
        """Read the objects of one namespace, or of all, and remove deleted ones from the store.

        With `unfinished`, FineTuneJobs that have ended are left out.
        """
        cluster = self._cluster
        lists = {
            "jobs": await self._list_jobs(namespace, unfinished=unfinished, share=share),
            "children": await cluster.list_children(namespace, _keeping_uid(self.put_child)),
            "pods": await cluster.list_pods(namespace, _keeping_uid(self.put_pod)),
            "claims": await cluster.list_claims(namespace, _keeping_uid(self.put_claim)),
        }
        for kind, listed in lists.items():
            self.listed.note(_PATHS[kind](namespace), listed.resource_version)
        self.listed.note(job_sets_path(namespace), lists["children"].resource_version)
        purged = [
            key
            for kind, listed in lists.items()
            for key in self._store.purge(kind, set(listed.items), listed.resource_version, namespace)
        ]
        self.missed_deletions += len(purged)
        for key in purged:
            self._note(key, Urgency.ENDING)

    async def _list_jobs(self, namespace: str, *, unfinished: bool, share: float) -> ObjectList[str]:
        read = partial(self._cluster.list_jobs, namespace, _keeping_uid(self.put_job), share=share)
        try:
            return await read(fields=UNFINISHED if unfinished else "")
        except ApiError as error:
            if not cannot_select(error):
                raise
            return await read()

    async def _synchronize_nodes(self) -> None:
        try:
            nodes = await self._cluster.list_nodes(project_node)
        except ApiError as error:
            if error.status != 403:
                raise
            problem = (
                "the operator must be allowed to list and watch nodes to know their GPUs, but it is not "
                f"({clean_text(error.message)[:300]}); grant this, or describe the GPUs in gpuProfiles of the chart"
            )
            if self._gpus.fail(problem):
                _logger.warning("%s", problem)
        else:
            self._gpus.replace(nodes.items, nodes.resource_version)
            self.listed.note(NODES_PATH, nodes.resource_version)

    async def resynchronize(self, period: float) -> None:
        """Read the FineTuneJobs that have ended, and then everything every `period` seconds, until canceled."""
        while True:
            await asyncio.sleep(period if self.filled else 0.0)
            try:
                await (self.synchronize(SHARE) if self.filled else self.fill())
            except ApiError as error:
                _logger.warning("resynchronizing failed, and it is tried again: %s", error)
            except Exception:
                # It is tried again. The watches continue meanwhile.
                _logger.exception("resynchronizing failed")
            if not self.filled:
                await asyncio.sleep(FILL_DELAY)

    async def refresh(self, key: Key, now: datetime) -> None:
        """Read the children, pods and claim of one FineTuneJob from the API server into the store, at time `now`.

        A Job may leave the watch while the rest is read, because it is deleted or because it loses its label. Reading again
        tells which.
        """
        names: set[str] = set()
        for _ in range(MAXIMUM_READS):
            children = await self._read_children(key, now, names)
            names |= {child.name for child in children}
            observation = self._store.observe(key)
            if observation is None or {child.uid for child in children} <= {
                child.uid for child in observation.children
            }:
                return

    async def _read_children(self, key: Key, now: datetime, names: Collection[str]) -> list[ChildJob]:
        """Read them once, with the Jobs of these names; returns the Jobs."""
        known = self._store.identities(key)
        jobs, pods = await self._cluster.read_children(key, {*known.job_names, *names}, known.job_uids)
        claim = await self._cluster.read_claim(key[0], workspace_claim_name(key[1]))
        children = [
            child for body in jobs.items if (child := project_child(body)) is not None and key_of(body) == key
        ]
        owners = {child.uid for child in children} | known.job_uids
        found = [
            pod
            for body in pods.items
            if (pod := project_pod(body)) is not None and (pod.owner_uid in owners or key_of(body) == key)
        ]
        self._store.replace_children(
            key,
            known,
            children,
            found,
            None if claim is None or key_of(claim) != key else project_claim(claim),
            (jobs.resource_version, pods.resource_version),
            now,
        )

        for name in sorted({pod.node for pod in found if lost_node(pod, self._gpus.inventory) is not None}):
            # A pod is removed by force for the loss of its node, so the watch of nodes must not lag behind.
            body = await self._cluster.read_node(name)
            if body is not None:
                self._gpus.put(project_node(body))
        return children

    async def reread(self, key: Key, now: datetime) -> None:
        """Read what a conflict has shown to be outdated: the FineTuneJob, or else its children."""
        known = self._store.observe(key)
        body = await self._cluster.read_job(key)
        if body is not None and self._store.put_job(project_job(body)):
            return
        if body is None and known is not None:
            self._store.remove_job(key, known.job.uid)
            return
        await self.refresh(key, now)

    def _wake_without_gpu(self) -> None:
        """Queue every job that lacks a GPU, once for all nodes that change together."""
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_later(NODE_DELAY, self._wake_now)

    def _wake_now(self) -> None:
        self._waking = False
        for key in self._store.keys_without_gpu():
            self._queue.add(key, Urgency.PROGRESS)


def _ignore(_namespace: str) -> None:
    """Nobody wants to know."""


def _keeping_uid(put: Callable[[Body], object]) -> Callable[[Body], str]:
    """Store an object of a LIST as its page arrives, and keep nothing but its uid."""

    def project(body: Body) -> str:
        put(body)
        return str(body["metadata"]["uid"])

    return project
