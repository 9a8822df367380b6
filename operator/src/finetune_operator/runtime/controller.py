"""The loop around `lifecycle.decide`: observe, decide, write the status, act."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stored import read_stored
from finetune_operator.cluster.client import UNANSWERED
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.refusals import QUOTA
from finetune_operator.cluster.resources import Cluster, child_path, claims_path, pods_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.volume_reader import VolumeReader
from finetune_operator.cluster.warnings import WarningReader
from finetune_operator.cluster.workqueue import WorkQueue
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
from finetune_operator.lifecycle.deletion import may_delete
from finetune_operator.lifecycle.refusals import action_key, depends_on
from finetune_operator.observed.observation import CREATION, JobRecord, Key, Observation, Rejection
from finetune_operator.runtime.refusal_groups import RefusalGroups, Times
from finetune_operator.runtime.rehearsals import Rehearsals
from finetune_operator.runtime.status_writer import RecordEvent, StatusWriter
from finetune_operator.settings import Settings

CONFLICT_DELAY = 1.0
"""Longest delay in seconds after a conflict, because the conflicting objects are read at once."""
UNRECORDED_DELAY = 60.0
"""Seconds until a status is tried again that the API server refuses."""
ERROR_DELAY = 60.0
"""Longest delay in seconds after an error of the API server, which usually concerns all jobs and ends for all."""
QUIET_SECONDS = 60.0
"""Time in which errors with one status code are one line of the log."""
MAXIMUM_PASSES = 3
"""Decisions in one reconcile: one more after a refusal, to say it, and one for what that decision changes."""

_logger = logging.getLogger(__name__)


class DeferredError(ChildRejectedError):
    """The API server was not asked, because it refuses the same to another job."""


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
        record_event: RecordEvent,
        forget_events: Callable[[Key], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`record_event` accepts an Event and returns at once. `forget_events` takes the key of a job that is gone.

        `now` is the wall clock in UTC; `clock` is monotonic.
        """
        self._store = store
        self._queue = queue
        self._cluster = cluster
        self._informer = informer
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._volumes = VolumeReader(cluster, clock)
        self.warnings = WarningReader(store, cluster, queue.add, now, clock)
        """Explains children that do not start. Its `run` is a part of the operator."""
        self._said: dict[int, float] = {}
        self._forget_events = forget_events
        self._statuses = StatusWriter(cluster, informer, now, record_event)
        self._rehearsals = Rehearsals(cluster, settings, now)
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 -- jitter, not a secret
        self._groups = RefusalGroups(self._random.random)

    async def work(self) -> None:
        """Reconcile keys until canceled. A key that failed is added again after a delay that grows with each failure."""
        while True:
            # No key is held in an outage, so that none seems to be stuck.
            await self._cluster.await_server()
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
            except ApiError as error:
                result = self._retry_after_error(key, error)
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
        try:
            await self._informer.reread(key, self._now())
        except ApiError as error:
            self._retry_after_error(key, error)
        except Exception:
            # The boundary, as in `work`.
            _logger.exception("reading %s/%s failed", *key)
            self._queue.add_rate_limited(key)
        else:
            self._queue.add_rate_limited(key, CONFLICT_DELAY)

    def _retry_after_error(self, key: Key, error: ApiError) -> str:
        """Queue a key again whose request failed; returns the result for the metrics."""
        if error.status in UNANSWERED or error.status == 429:
            # The workers pause in an outage, and its end is not the time for all keys at once.
            delay = max(error.retry_after, 1.0) * (0.5 + self._random.random())
            self._queue.add_after(key, delay, self._queue.urgency_of(key))
            return "requeue"
        now = self._clock()
        if now - self._said.get(error.status, float("-inf")) >= QUIET_SECONDS:
            self._said[error.status] = now
            _logger.error("reconciling %s/%s failed; others may fail alike: %s", *key, error)
        else:
            _logger.debug("reconciling %s/%s failed: %s", *key, error)
        self._queue.add_rate_limited(key, ERROR_DELAY)
        return "error"

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one FineTuneJob; returns the seconds after which to reconcile it again, or None."""
        for _ in range(MAXIMUM_PASSES):
            found = await self._decide(key)
            if found is None:
                self._schedule(self._groups.leave_all(key))
                self._statuses.forget(key)
                self._forget_events(key)
                self._queue.cancel(key)
                return None
            observation, decision = found
            self._forget_unwanted(observation, decision)
            if not await self._apply(observation.job, decision):
                break
        if decision.requeue_time is None:
            return None
        return max((decision.requeue_time - self._now()).total_seconds(), 0.01)

    async def _decide(self, key: Key) -> tuple[Observation, Decision] | None:
        """Decide from the store and from what the decision needs; None if the FineTuneJob does not exist."""
        observation = await self._rehearse(key)
        if observation is not None and _will_start(observation):
            # The decision would ask for it, and begin anew with it.
            observation = await self._read(key, observation, Need.VOLUMES)
        while observation is not None:
            decision = decide(observation, self._settings, self._now())
            if isinstance(decision, Decision):
                return observation, decision
            observation = await self._read(key, observation, decision)
        return None

    async def _rehearse(self, key: Key) -> Observation | None:
        """Observe a FineTuneJob. The children of a new one with settings of its own are checked first."""
        observation = self._store.observe(key)
        if observation is None or observation.rejection is not None:
            return observation
        invalid = await self._rehearsals.refusal(observation)
        if invalid is not None:
            self._store.set_refusal(key, CREATION, Rejection(invalid, self._now(), final=True))
        return self._store.observe(key)

    async def _read(self, key: Key, observation: Observation, need: Need) -> Observation | None:
        """Read what a decision needs; None if the FineTuneJob has been deleted meanwhile."""
        match need:
            case Need.FRESH_CHILDREN:
                await self._informer.refresh(key, self._now())
                return self._store.observe(key, fresh=True)
            case Need.POD_WARNINGS:
                return replace(observation, warnings=await self.warnings.read(key), warnings_read=True)
            case Need.VOLUMES:
                return replace(observation, volumes=await self._volumes.read(observation))

    async def _apply(self, job: JobRecord, decision: Decision) -> bool:
        """Write the status and carry out the actions; returns True if the API server refuses one of them.

        Nothing more happens once the job is known to be deleted.
        """
        identity = (job.key, job.uid)
        if decision.problem is not None:
            _logger.error("%s/%s cannot be read: %s", job.namespace, job.name, decision.problem)
        if not self._store.has_job(*identity):
            # It was deleted while the decision was prepared.
            return False
        if decision.acts_first:
            return await self._start(job, decision.actions)
        if decision.status is not None and not await self._statuses.write(job, decision.status):
            # What cannot be recorded must not be done. The condition says so.
            self._queue.add_after(job.key, UNRECORDED_DELAY)
            return False
        refused: list[Action] = []
        for action in decision.actions:
            if any(depends_on(action, other) for other in refused):
                continue
            if not self._store.has_job(*identity):
                # The garbage collector deletes what it has. A new child would be in the way of a job of the same name.
                return False
            try:
                self._defer(job, action)
                await self._ask(job, action)
            except ChildRejectedError as error:
                refused.append(action)
                self._note_refusal(job.key, action, error)
        if any(isinstance(action, CreateJob) and action not in refused for action in decision.actions):
            self._queue.add(job.key)
        return bool(refused)

    async def _start(self, job: JobRecord, actions: Sequence[Action]) -> bool:
        """Send the creations of a new job; returns True if the API server refuses one of them.

        The claim goes before the Job, because another object may have its name, and the pod would run in that. The status
        follows in a reconcile of its own, behind those of all jobs that have no Job yet.
        """
        try:
            for action in actions:
                self._defer(job, action)
        except DeferredError:
            return True
        for action in actions:
            if not self._store.has_job(job.key, job.uid):
                break
            try:
                await self._ask(job, action)
            except ChildRejectedError as error:
                self._note_refusal(job.key, action, error)
                return True
        self._queue.add(job.key)
        return False

    # -- refusals -----------------------------------------------------------------------------------------------

    def _defer(self, job: JobRecord, action: Action) -> None:
        """Raises DeferredError if others of the job's namespace are refused for a quota that `action` needs, too."""
        member = (job.key, action_key(action))
        kind = {CreateClaim: "PersistentVolumeClaim", CreateJob: "Job"}.get(type(action))
        if kind is not None:
            deferred = self._groups.defer(member, f"{kind}/{QUOTA}", self._now())
            if deferred is not None:
                message, times = deferred
                self._store.set_refusal(*member, Rejection(message, times[member]))
                self._schedule(times)
                raise DeferredError(message)

    async def _ask(self, job: JobRecord, action: Action) -> None:
        """Carry out an action, and forget its earlier refusal."""
        member = (job.key, action_key(action))
        await self._act(job, action)
        if not isinstance(action, CreateClaim):
            # The Job of the attempt has the same refusal as its claim, and it follows.
            self._store.set_refusal(*member, None)
        self._schedule(self._groups.admit(member, self._now()))

    def _note_refusal(self, key: Key, action: Action, error: ChildRejectedError) -> None:
        """Remember a refusal, so that the action is tried again after a delay and only by one job of its group."""
        if isinstance(error, DeferredError):
            return
        member = (key, action_key(action))
        now = self._now()
        times = self._groups.refuse(member, error.kind, str(error), now)
        self._store.set_refusal(*member, Rejection(str(error), times[member], error.final))
        self._schedule(times)

    def _forget_unwanted(self, observation: Observation, decision: Decision) -> None:
        """Forget the refusals of actions that the job does not want any more."""
        wanted = {action_key(action) for action in (*decision.actions, *decision.held)}
        if find_condition(decision.status or {}, Condition.SUCCEEDED).get("reason") == Reason.CHILD_REFUSED:
            wanted.add(CREATION)
        known = set(observation.refusals) | ({CREATION} if observation.rejection is not None else set())
        for action in known - wanted:
            self._store.set_refusal(observation.job.key, action, None)
            self._schedule(self._groups.leave((observation.job.key, action)))

    def _schedule(self, times: Times) -> None:
        """Let the members of a group try again at these times."""
        now = self._now()
        for (key, action), time in times.items():
            if self._store.set_retry_time(key, action, time):
                self._queue.add_after(key, max((time - now).total_seconds(), 0.01))

    async def _act(self, job: JobRecord, action: Action) -> None:
        namespace = job.namespace
        match action:
            case CreateClaim(body):
                claim = await self._cluster.create_child(claims_path(namespace), job, body)
                self._informer.put_claim(claim)
            case CreateJob(body):
                child = await self._cluster.create_child(child_path(namespace, body["kind"]), job, body)
                self._informer.put_child(child)
            case SuspendJob(name, uid, suspend, version, kind):
                child = await self._cluster.suspend_job(
                    namespace, name, uid, suspend=suspend, resource_version=version, kind=kind
                )
                self._informer.put_child(child)
            case DeleteJob() | DeletePod() | DeleteClaim():
                await self._delete(job, action)
            case ExpandClaim(name, uid, size):
                claim = await self._cluster.expand_claim(namespace, name, uid, size)
                self._informer.put_claim(claim)

    async def _delete(self, job: JobRecord, action: DeleteJob | DeletePod | DeleteClaim) -> None:
        """Delete an object of the operator. If it is gone already, the watch has missed that, so it is forgotten here."""
        key, uid = job.key, action.uid
        observation = self._store.observe(key)
        if observation is None or not may_delete(observation, action):
            # It has disappeared or changed its owner since the decision.
            _logger.debug("%s/%s: gone, or not the operator's: %s", *key, action)
            return
        match action:
            case DeleteJob(name, _, kind):
                found = await self._cluster.delete(f"{child_path(job.namespace, kind)}/{name}", uid)
                (self._store.mark_child_deleting if found else self._store.remove_child)(key, uid)
            case DeletePod(name, _, grace):
                path = f"{pods_path(job.namespace)}/{name}"
                if not await self._cluster.delete(path, uid, grace_seconds=grace):
                    self._store.remove_pod(key, uid)
            case DeleteClaim(name):
                found = await self._cluster.delete(f"{claims_path(job.namespace)}/{name}", uid)
                (self._store.mark_claim_deleting if found else self._store.remove_claim)(key, uid)


def _will_start(observation: Observation) -> bool:
    """True for a job that nobody has decided about yet, if it may start."""
    job = observation.job
    if job.status or job.deleting or observation.children or observation.rejection is not None:
        return False
    spec = read_stored(job.spec).spec
    return spec is not None and not spec.suspend


async def run_workers(controller: Controller, count: int) -> None:
    """Run `count` workers until canceled or until one of them raises an error."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(controller.work(), name=f"worker-{number}")
