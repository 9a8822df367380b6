"""The loop around `lifecycle.decide`: observe, decide, write the status, act."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.resources import Cluster, batch_jobs_path, claims_path, pods_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.volume_reader import VolumeReader
from finetune_operator.cluster.workqueue import MAXIMUM_DELAY, WorkQueue
from finetune_operator.errors import ApiError, ChildRejectedError, ConflictError
from finetune_operator.lifecycle.actions import (
    Action,
    CreateClaim,
    CreateJob,
    Decision,
    DeleteClaim,
    DeleteJob,
    DeletePod,
    ExpandClaim,
    Need,
    SuspendJob,
)
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.observation import JobRecord, Key, Observation, Rejection
from finetune_operator.settings import Settings
from finetune_operator.status.events import transitions

REJECTION_DELAY = timedelta(seconds=15)
CONFLICT_DELAY = 1.0
"""Longest delay in seconds after a conflict, because the conflicting objects are read at once."""

_logger = logging.getLogger(__name__)


class ReconcileMetrics(Protocol):
    """The controller reports its work here."""

    def reconciled(self, result: str, seconds: float) -> None:
        """One reconcile ended: `success`, `requeue_after`, `requeue` or `error`."""

    def active(self, change: int) -> None:
        """A worker began (+1) or ended (-1) a reconcile."""


class Controller:
    """Reconciles FineTuneJobs from the queue."""

    def __init__(
        self,
        *,
        store: Store,
        queue: WorkQueue[Key],
        cluster: Cluster,
        informer: Informer,
        settings: Settings,
        metrics: ReconcileMetrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`now` is the wall clock in UTC; `clock` is monotonic, in seconds."""
        self._store = store
        self._queue = queue
        self._cluster = cluster
        self._informer = informer
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._volumes = VolumeReader(cluster, clock)

    async def work(self) -> None:
        """Reconcile keys until canceled. A key that failed is added again after a delay that grows with each failure."""
        while True:
            key = await self._queue.get()
            started = self._clock()
            self._metrics.active(1)
            result = "error"
            try:
                after = await self.reconcile(key)
                self._queue.forget(key)
                result = "success" if after is None else "requeue_after"
                if after is not None:
                    self._queue.add_after(key, after)
            except ConflictError as error:
                _logger.debug("%s/%s: %s", *key, error)
                result = "requeue"
                await self._reread(key)
            except Exception:
                # The boundary: an error in one job must not stop the others. The job is tried again.
                _logger.exception("reconciling %s/%s failed", *key)
                self._queue.add_rate_limited(key)
            finally:
                self._metrics.active(-1)
                self._metrics.reconciled(result, self._clock() - started)
                self._queue.done(key)

    async def _reread(self, key: Key) -> None:
        """Read the objects of a conflict, and decide again soon. Waiting for the watch could take minutes."""
        longest = CONFLICT_DELAY
        try:
            await self._informer.reread(key, self._now())
        except ApiError as error:
            _logger.debug("%s/%s: %s", *key, error)
            longest = MAXIMUM_DELAY
        except Exception:
            # The boundary, as in `work`.
            _logger.exception("reading %s/%s failed", *key)
            longest = MAXIMUM_DELAY
        self._queue.add_rate_limited(key, longest)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one FineTuneJob; returns the seconds after which to reconcile it again, or None."""
        observation = self._store.observe(key)
        if observation is None:
            return None
        decision = decide(observation, self._settings, self._now())
        while isinstance(decision, Need):
            observation = await self._read(key, observation, decision)
            if observation is None:
                return None
            decision = decide(observation, self._settings, self._now())
        await self._apply(observation.job, decision)
        if decision.requeue_time is None:
            return None
        return max((decision.requeue_time - self._now()).total_seconds(), 0.01)

    async def _read(self, key: Key, observation: Observation, need: Need) -> Observation | None:
        """Read what a decision needs; None if the FineTuneJob has been deleted meanwhile."""
        match need:
            case Need.FRESH_CHILDREN:
                await self._informer.refresh(key, self._now())
                return self._store.observe(key, fresh=True)
            case Need.VOLUMES:
                return replace(observation, volumes=await self._volumes.read(observation))

    async def _apply(self, job: JobRecord, decision: Decision) -> None:
        if decision.problem is not None:
            _logger.error("%s/%s cannot be read: %s", job.namespace, job.name, decision.problem)
        if decision.status is not None and decision.status != job.status:
            stored = await self._cluster.write_status(job, decision.status)
            self._informer.put_job(stored)
            for transition in transitions(job.status, decision.status):
                _logger.info("%s/%s: %s: %s", job.namespace, job.name, transition.reason, transition.message)
                await self._cluster.record_event(job, transition, self._now(), secrets.token_hex(8))
        try:
            for action in decision.actions:
                await self._act(job, action)
        except ChildRejectedError as error:
            self._store.set_rejection(job.key, Rejection(str(error), self._now() + REJECTION_DELAY))
            self._queue.add(job.key)
        else:
            if any(isinstance(action, CreateJob) for action in decision.actions):
                self._store.set_rejection(job.key, None)
                self._queue.add(job.key)

    async def _act(self, job: JobRecord, action: Action) -> None:
        namespace = job.namespace
        match action:
            case CreateClaim(body):
                claim = await self._cluster.create_child(claims_path(namespace), job, body)
                self._informer.put_claim(claim)
            case CreateJob(body):
                child = await self._cluster.create_child(batch_jobs_path(namespace), job, body)
                self._informer.put_child(child)
            case SuspendJob(name, uid, suspend, version):
                child = await self._cluster.suspend_job(
                    namespace, name, uid, suspend=suspend, resource_version=version
                )
                self._informer.put_child(child)
            case DeleteJob(name, uid):
                await self._cluster.delete(f"{batch_jobs_path(namespace)}/{name}", uid)
                self._store.mark_child_deleting(job.key, uid)
            case DeletePod(name, uid, grace):
                await self._cluster.delete(f"{pods_path(namespace)}/{name}", uid, grace_seconds=grace)
            case ExpandClaim(name, uid, size):
                claim = await self._cluster.expand_claim(namespace, name, uid, size)
                self._informer.put_claim(claim)
            case DeleteClaim(name, uid):
                await self._cluster.delete(f"{claims_path(namespace)}/{name}", uid)
                self._store.mark_claim_deleting(job.key, uid)


async def run_workers(controller: Controller, count: int) -> None:
    """Run `count` workers until canceled or until one of them raises an error."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(controller.work(), name=f"worker-{number}")
