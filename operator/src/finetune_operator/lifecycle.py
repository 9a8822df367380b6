"""The heart of the operator: from what is observed to what is to be done. Pure; the clock is an argument.

PREPARE, TRAIN and MERGE run one after the other, each as one batch/v1 Job per attempt. Status is the record: it is
written before any action, so whatever the operator was doing when it died, the next decision goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.checks import check
from finetune_operator.endings import Ending, judge, lost
from finetune_operator.errors import InvalidSpecError
from finetune_operator.jobs import build_job, build_workspace_claim
from finetune_operator.model import FineTuneJobSpec, Lifecycle, spec_hash
from finetune_operator.observation import ChildJob, Claim, Observation, Pod
from finetune_operator.planning import make_plan
from finetune_operator.reasons import Reason
from finetune_operator.result import Result
from finetune_operator.retention import child_expiry, keeps_workspace
from finetune_operator.retry import delay_after
from finetune_operator.runspec import JobIdentity, build_run_spec, cluster_places
from finetune_operator.settings import TrainerSettings
from finetune_operator.stages import Stage
from finetune_operator.status import StatusDraft
from finetune_operator.waiting import NO_POD_GRACE, why_waiting

MAXIMUM_ATTEMPT = 1000
"""Highest attempt number that the contract allows."""


@dataclass(frozen=True)
class CreateClaim:
    """Create the workspace's claim."""

    body: dict[str, Any]


@dataclass(frozen=True)
class CreateJob:
    """Create a stage's batch/v1 Job."""

    body: dict[str, Any]


@dataclass(frozen=True)
class SuspendJob:
    """Set `spec.suspend` of this very batch/v1 Job."""

    name: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class DeleteJob:
    """Delete this very batch/v1 Job and, in the background, its pods."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeletePod:
    """Delete this very pod without grace: nothing in it runs any more.

    The kubelet would take two more seconds to say so, in which the pod keeps its GPU and its quota.
    """

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteClaim:
    """Delete this very claim."""

    name: str
    uid: str


Action = CreateClaim | CreateJob | SuspendJob | DeleteJob | DeletePod | DeleteClaim


@dataclass(frozen=True)
class Decision:
    """What to do: write `status` if it differs from the stored one, then the actions in order.

    `needs_fresh` asks to decide again with children and pods read from the API server: an attempt would otherwise be
    called lost on the word of a watch that may lag behind. Nothing else of such a decision is to be carried out.
    """

    status: dict[str, Any] | None = None
    actions: tuple[Action, ...] = ()
    requeue_time: datetime | None = None
    needs_fresh: bool = False


class _NeedsFreshError(Exception):
    """The decision must not rest on the watch alone."""


def decide(observation: Observation, trainer: TrainerSettings, now: datetime) -> Decision:
    """Decide on one FineTuneJob. Deciding twice on the same observation gives the same."""
    if observation.job.deleting:
        # Children go with their owner.
        return Decision()
    try:
        return _Round(observation, trainer, now).decide()
    except _NeedsFreshError:
        return Decision(needs_fresh=True)


class _Round:
    """One decision in the making."""

    def __init__(self, observation: Observation, trainer: TrainerSettings, now: datetime) -> None:
        self._seen = observation
        self._trainer = trainer
        self._now = now
        self._draft = StatusDraft(observation.job, now)
        self._actions: list[Action] = []
        self._requeue_times: list[datetime] = []

    def decide(self) -> Decision:
        spec = self._read_spec()
        if spec is not None and not self._draft.finished:
            self._accept(spec)
            self._check_deadline(spec)
            self._fold_ending(spec)
        self._delete_spent_jobs(spec.lifecycle if spec is not None else Lifecycle())
        # Without a readable spec nobody knows whether the workspace is to be kept, so it is.
        if spec is not None:
            if self._draft.finished:
                self._delete_workspace(spec.lifecycle)
            elif spec.suspend:
                self._suspend()
            else:
                self._drive(spec)
        return Decision(
            status=self._draft.to_status(),
            actions=tuple(self._actions),
            requeue_time=min(self._requeue_times, default=None),
        )

    # -- the story, in order ------------------------------------------------------------------------------------

    def _read_spec(self) -> FineTuneJobSpec | None:
        try:
            spec = FineTuneJobSpec.parse(self._seen.job.spec)
            check(self._seen.job.name, spec)
        except InvalidSpecError as error:
            if not self._draft.finished:
                self._draft.fail(Reason.INVALID_SPEC, str(error))
            return None
        return spec

    def _accept(self, spec: FineTuneJobSpec) -> None:
        self._draft.accept(spec_hash(spec), make_plan(spec, self._trainer.device))
        if not spec.suspend:
            self._draft.mark_started()

    def _check_deadline(self, spec: FineTuneJobSpec) -> None:
        seconds, start = spec.lifecycle.deadline_seconds, self._draft.start_time
        if seconds is None or start is None or spec.suspend:
            return
        deadline = start + timedelta(seconds=seconds)
        if self._now < deadline:
            self._requeue_times.append(deadline)
        elif self._ending(spec) is None:
            self._draft.fail(
                Reason.DEADLINE_EXCEEDED, f"the job must end within {seconds} s of its start, and has not"
            )

    def _fold_ending(self, spec: FineTuneJobSpec) -> None:
        """Fold the current attempt's end into status: go on, try again, or end the job."""
        if self._draft.finished:
            return
        ending = self._ending(spec)
        if ending is None:
            return
        if ending.reason in {Reason.STAGE_LOST, Reason.DISRUPTED} and not self._seen.fresh:
            raise _NeedsFreshError
        self._draft.record_attempt(ending)
        if ending.outcome == "Succeeded" and ending.result is not None:
            self._fold_success(ending.result)
        else:
            self._fold_failure(ending, spec)

    def _fold_success(self, result: Result) -> None:
        draft = self._draft
        if result.prepare is not None and draft.stage is Stage.PREPARE:
            draft.fold_prepare(result.prepare)
            train = result.completed.train if result.completed is not None else None
            merge = result.completed.merge if result.completed is not None else None
            if train is None:
                draft.begin_stage(Stage.TRAIN)
                return
            # Stages of this very spec hash that an earlier run finished are not run again.
            draft.fold_train(train)
            if merge is None:
                draft.begin_stage(Stage.MERGE)
                return
            draft.begin_stage(Stage.MERGE)
            draft.fold_merge(merge)
            draft.complete()
        elif result.train is not None and draft.stage is Stage.TRAIN:
            draft.fold_train(result.train)
            draft.begin_stage(Stage.MERGE)
        elif result.merge is not None and draft.stage is Stage.MERGE:
            draft.fold_merge(result.merge)
            draft.complete()

    def _fold_failure(self, ending: Ending, spec: FineTuneJobSpec) -> None:
        draft = self._draft
        delay = delay_after(
            ending.kind,
            failures=draft.count_attempts(draft.stage, "Failed"),
            interruptions=draft.count_attempts(draft.stage, "Interrupted"),
            retries=spec.lifecycle.retries,
            ran=draft.attempt_duration,
        )
        if delay is None or draft.attempt >= MAXIMUM_ATTEMPT:
            log_tail = ending.result.log_tail if ending.result is not None else ()
            draft.fail(ending.reason, ending.message, log_tail)
        else:
            draft.begin_attempt(draft.attempt + 1, self._now + delay)

    def _suspend(self) -> None:
        self._draft.suspend()
        child = self._current_child()
        if child is not None and not child.suspended and not child.deleting:
            self._actions.append(SuspendJob(child.name, child.uid, suspend=True))

    def _drive(self, spec: FineTuneJobSpec) -> None:
        child = self._current_child()
        if child is None:
            self._start(spec)
        else:
            self._follow(child)

    def _start(self, spec: FineTuneJobSpec) -> None:
        """Create the current attempt's Job as soon as nothing speaks against it."""
        draft, job = self._draft, self._seen.job
        if draft.retry_time is not None and self._now < draft.retry_time:
            last = draft.find_attempt(draft.stage, draft.attempt - 1) or {}
            self._requeue_times.append(draft.retry_time)
            draft.go_on(
                Reason.BACKING_OFF,
                f"attempt {draft.attempt} of {draft.stage.value} follows; the last one ended with "
                f"{last.get('reason', Reason.STAGE_LOST)}: {last.get('message', '')}",
            )
            return
        refusal = self._seen.refusal
        if refusal is not None:
            # Said until a try succeeds, so that status does not flip with every try.
            draft.go_on(Reason.CHILD_REFUSED, refusal.message)
            if self._now < refusal.retry_time:
                self._requeue_times.append(refusal.retry_time)
                return
        elif running := self._running_strangers():
            # The stages share a workspace, so one at a time.
            draft.go_on(self._active_reason(), f"waits for pod {running[0].name} to end")
            return
        else:
            draft.go_on(self._active_reason(), f"{draft.stage.value} is being started")
        if spec.workspace.existing_claim is None and self._own_claim() is None:
            self._actions.append(CreateClaim(build_workspace_claim(job, spec)))
        self._actions.append(CreateJob(self._build_job(spec)))

    def _follow(self, child: ChildJob) -> None:
        draft = self._draft
        pods = self._pods_of(child)
        node = max(pods, key=lambda pod: pod.created).node if pods else ""
        draft.see_job(child.created, node)
        if child.suspended and not child.deleting:
            self._actions.append(SuspendJob(child.name, child.uid, suspend=False))
        progress = self._seen.progress
        if progress is not None and (progress.stage, progress.attempt) == (draft.stage, draft.attempt):
            draft.report(progress)
        waiting = why_waiting(child, pods, self._now)
        if waiting is not None:
            draft.go_on(waiting.reason, waiting.message)
        elif any(pod.running for pod in pods):
            draft.go_on(draft.stage.active_reason, f"{draft.stage.value} is running")
        else:
            draft.go_on(self._active_reason(), f"waits for the pod of Job {child.name} to start")
        if not pods:
            told = child.created + NO_POD_GRACE
            self._requeue_times.append(told if self._now < told else self._now + NO_POD_GRACE)

    def _delete_spent_jobs(self, lifecycle: Lifecycle) -> None:
        """Delete every Job but the current attempt's, recorded ones after the time they are kept for."""
        for child in self._own_children():
            if child.deleting or (child == self._current_child() and not self._draft.finished):
                continue
            attempt = self._draft.find_attempt(child.stage, child.attempt)
            expiry = child_expiry(attempt, lifecycle, self._now)
            if expiry <= self._now:
                self._actions.append(DeleteJob(child.name, child.uid))
                self._actions.extend(
                    DeletePod(pod.name, pod.uid)
                    for pod in self._pods_of(child)
                    if pod.end is not None and pod.idle
                )
            else:
                self._requeue_times.append(expiry)

    def _delete_workspace(self, lifecycle: Lifecycle) -> None:
        claim = self._own_claim()
        if claim is None or claim.deleting or keeps_workspace(lifecycle, succeeded=self._draft.succeeded):
            return
        self._actions.append(DeleteClaim(claim.name, claim.uid))

    # -- what is seen -------------------------------------------------------------------------------------------

    def _ending(self, spec: FineTuneJobSpec) -> Ending | None:
        child = self._current_child()
        if child is not None:
            return judge(
                uid=self._seen.job.uid, child=child, pods=self._pods_of(child), suspending=spec.suspend
            )
        if self._draft.job_seen:
            return lost(f"Job {self._seen.job.status['stage']['jobName']} was deleted before it ended")
        return None

    def _own_children(self) -> list[ChildJob]:
        return [child for child in self._seen.children if child.owner_uid == self._seen.job.uid]

    def _current_child(self) -> ChildJob | None:
        current = (self._draft.stage, self._draft.attempt)
        return next(
            (child for child in self._own_children() if (child.stage, child.attempt) == current), None
        )

    def _pods_of(self, child: ChildJob) -> tuple[Pod, ...]:
        return tuple(pod for pod in self._seen.pods if pod.owner_uid == child.uid)

    def _running_strangers(self) -> list[Pod]:
        """Pods of this job's other attempts whose trainer has not ended."""
        uids = {child.uid for child in self._own_children()}
        return [pod for pod in self._seen.pods if pod.owner_uid in uids and pod.running]

    def _own_claim(self) -> Claim | None:
        claim = self._seen.claim
        return claim if claim is not None and claim.owner_uid == self._seen.job.uid else None

    def _active_reason(self) -> Reason:
        """The current stage's reason, Pending before the first stage runs."""
        first = self._draft.stage is Stage.PREPARE and self._draft.attempt == 0
        return Reason.PENDING if first else self._draft.stage.active_reason

    def _build_job(self, spec: FineTuneJobSpec) -> dict[str, Any]:
        job, draft = self._seen.job, self._draft
        identity = JobIdentity(job.namespace, job.name, job.uid)
        run_spec = build_run_spec(
            job=identity,
            spec=spec,
            spec_hash=draft.spec_hash or spec_hash(spec),
            plan=make_plan(spec, self._trainer.device),
            places=cluster_places(identity, spec),
            device=self._trainer.device,
            limits=self._trainer.limits.to_limits(),
            telemetry_port=self._trainer.telemetry_port,
            attempt=draft.attempt,
        )
        return build_job(job, spec, draft.stage, draft.attempt, run_spec, self._trainer)
