"""The heart of the operator: from what is observed to what is to be done. Pure; the clock is an argument.

PREPARE, TRAIN and MERGE run one after the other, each as one batch/v1 Job per attempt. Status is the record: it is
written before any action, so whatever the operator was doing when it died, the next decision goes on from there.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec, Lifecycle, spec_hash
from finetune_operator.api.stages import Stage
from finetune_operator.api.validation import check
from finetune_operator.contract.result import Progress
from finetune_operator.errors import InvalidSpecError
from finetune_operator.lifecycle import volumes as volume_policy
from finetune_operator.lifecycle.actions import (
    Action,
    CreateClaim,
    CreateJob,
    Decision,
    DeleteClaim,
    DeleteJob,
    DeletePod,
    SuspendJob,
)
from finetune_operator.lifecycle.advance import fold_success
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace
from finetune_operator.lifecycle.retry import delay_after
from finetune_operator.lifecycle.sizing import Doomed, Hold, Sized, assess, why_no_gpu
from finetune_operator.lifecycle.stage_jobs import build_stage_job, size_host
from finetune_operator.manifests.jobs import build_workspace_claim
from finetune_operator.observed.observation import ChildJob, Claim, Observation, Pod
from finetune_operator.observed.outcomes import Ending, judge, lost
from finetune_operator.observed.pending import NO_POD_GRACE, why_waiting
from finetune_operator.placement.constraints import Placement
from finetune_operator.placement.storage import JobVolumes
from finetune_operator.settings import Settings
from finetune_operator.sizing.hosts import may_retry_with_more, out_of_memory_message
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.draft import StatusDraft

MAXIMUM_ATTEMPT = 1000
"""Highest attempt number that the contract allows."""


class _NeedsFreshError(Exception):
    """The decision must not rest on the watch alone."""


class _NeedsVolumesError(Exception):
    """The decision depends on the job's claims, which have not been read."""


def decide(observation: Observation, settings: Settings, now: datetime) -> Decision:
    """Decide on one FineTuneJob. Deciding twice on the same observation gives the same."""
    if observation.job.deleting:
        # Children go with their owner.
        return Decision()
    try:
        return _Round(observation, settings, now).decide()
    except _NeedsFreshError:
        return Decision(needs_fresh=True)
    except _NeedsVolumesError:
        return Decision(needs_volumes=True)


class _Round:
    """One decision in the making."""

    def __init__(self, observation: Observation, settings: Settings, now: datetime) -> None:
        self._seen = observation
        self._settings = settings
        self._trainer = settings.trainer
        self._now = now
        self._draft = StatusDraft(observation.job, now)
        self._actions: list[Action] = []
        self._requeue_times: list[datetime] = []
        self._verdict: Sized | Hold | Doomed | None = None

    def decide(self) -> Decision:
        spec = self._read_spec()
        if spec is not None and not self._draft.finished:
            self._accept(spec)
            self._check_deadline(spec)
            self._fold_ending(spec)
            self._assess(spec)
        self._delete_spent_jobs(spec.lifecycle if spec is not None else Lifecycle())
        # Without a readable spec nobody knows whether the workspace is to be kept, so it is.
        if spec is not None:
            if self._draft.finished:
                self._delete_workspace(spec.lifecycle)
            elif spec.suspend:
                self._suspend()
            else:
                self._drive(spec)
                self._await_deadline(spec)
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

    def _deadline(self, spec: FineTuneJobSpec) -> datetime | None:
        """When the job must have ended, as things stand: it moves on while the job lacks a GPU."""
        seconds, start = spec.lifecycle.deadline_seconds, self._draft.start_time
        if seconds is None or start is None or spec.suspend:
            return None
        return start + timedelta(seconds=seconds) + self._draft.waited

    def _check_deadline(self, spec: FineTuneJobSpec) -> None:
        deadline = self._deadline(spec)
        if deadline is not None and self._now >= deadline and self._ending(spec) is None:
            self._draft.fail(
                Reason.DEADLINE_EXCEEDED,
                f"the job must end within {spec.lifecycle.deadline_seconds} s of its start, and has not",
            )

    def _await_deadline(self, spec: FineTuneJobSpec) -> None:
        deadline = self._deadline(spec)
        if deadline is not None and self._draft.waiting_since is None:
            self._requeue_times.append(deadline)

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
            fold_success(self._draft, ending.result)
        else:
            self._fold_failure(ending, spec)

    def _fold_failure(self, ending: Ending, spec: FineTuneJobSpec) -> None:
        draft = self._draft
        killed = ending.reason == Reason.HOST_OUT_OF_MEMORY
        delay = delay_after(
            ending.kind,
            failures=draft.count_attempts(draft.stage, "Failed"),
            interruptions=draft.count_attempts(draft.stage, "Interrupted"),
            retries=spec.lifecycle.retries,
            ran=draft.attempt_duration,
            may_grow=killed and may_retry_with_more(spec, draft.stage, self._out_of_memory()),
        )
        if delay is None or draft.attempt >= MAXIMUM_ATTEMPT:
            log_tail = ending.result.log_tail if ending.result is not None else ()
            message = ending.message
            if killed:
                had = size_host(spec, draft, self._settings, self._out_of_memory() - 1)
                message = f"{message}; {out_of_memory_message(spec, draft.stage, had)}"
            draft.fail(ending.reason, message, log_tail)
        else:
            draft.begin_attempt(draft.attempt + 1, self._now + delay)

    def _assess(self, spec: FineTuneJobSpec) -> None:
        """Find out whether TRAIN can run, and take back a TRAIN Job that waits for what would not do any more."""
        draft = self._draft
        if draft.finished or spec.suspend:
            return
        progress = self._progress()
        news = draft.config is None and progress is not None and progress.config is not None
        if progress is not None and progress.config is not None:
            draft.record_config(progress.config)
        child = self._current_child()
        pods = self._pods_of(child) if child is not None else ()
        if draft.stage is Stage.TRAIN and pods and max(pods, key=lambda pod: pod.created).node:
            return
        verdict = assess(spec, draft, self._seen.inventory, self._settings)
        if isinstance(verdict, Sized) and (draft.stage is Stage.TRAIN or news):
            moved = volume_policy.to_be_moved(spec, verdict, self._volumes(), progress if news else None)
            checked, changes = volume_policy.check_volumes(spec, draft, verdict, self._volumes())
            if moved is not None and (spec.workspace.size is None or not isinstance(checked, Doomed)):
                # No attempt: nothing of what it did is of use elsewhere. The new claim is placed and sized by what is known now.
                self._actions.append(DeleteClaim(moved.name, moved.uid))
                draft.begin_attempt(draft.attempt + 1, self._now)
            else:
                verdict = checked
                self._actions.extend(changes)
        self._verdict = verdict
        if isinstance(verdict, Doomed):
            draft.fail(verdict.reason, verdict.message)
        if draft.stage is not Stage.TRAIN:
            return
        if isinstance(verdict, Sized) and not draft.training_begun:
            draft.record_plan(verdict.shown)
        good = isinstance(verdict, Sized) and child is not None and child.placement == verdict.digest
        if child is not None and not good and not draft.finished and draft.attempt < MAXIMUM_ATTEMPT:
            # Its pod has no node, so nothing is lost; what a pod asks of a node cannot be changed.
            draft.begin_attempt(draft.attempt + 1, self._now)

    def _volumes(self) -> JobVolumes:
        if self._seen.volumes is None:
            raise _NeedsVolumesError
        return self._seen.volumes

    def _out_of_memory(self) -> int:
        """How many attempts of the current stage were killed for their memory."""
        return self._draft.count_reason(self._draft.stage, Reason.HOST_OUT_OF_MEMORY)

    def _suspend(self) -> None:
        self._draft.suspend()
        child = self._current_child()
        if child is not None and not child.suspended and not child.deleting:
            self._actions.append(SuspendJob(child.name, child.uid, suspend=True))

    def _drive(self, spec: FineTuneJobSpec) -> None:
        child = self._current_child()
        if isinstance(self._verdict, Hold):
            self._draft.stall(self._verdict.reason, self._verdict.message)
            if child is not None and not child.suspended and not child.deleting:
                self._actions.append(SuspendJob(child.name, child.uid, suspend=True))
        elif self._draft.finished:
            return
        elif child is None:
            self._start(spec)
        else:
            self._follow(child)

    def _start(self, spec: FineTuneJobSpec) -> None:
        """Create the current attempt's Job as soon as nothing speaks against it."""
        draft = self._draft
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
        elif awaited := self._awaited():
            draft.go_on(self._active_reason(), f"waits for {awaited}")
            return
        else:
            draft.go_on(self._active_reason(), f"{draft.stage.value} is being started")
        placement = Placement()
        sized = self._verdict if isinstance(self._verdict, Sized) else None
        if draft.stage is Stage.PREPARE:
            found = volume_policy.place_prepare(spec, sized, self._volumes(), self._seen.inventory)
            if isinstance(found, Hold):
                draft.stall(found.reason, found.message)
                return
            if isinstance(found, Doomed):
                draft.fail(found.reason, found.message)
                return
            placement = found
        elif draft.stage is Stage.MERGE:
            placement = volume_policy.place_merge(spec, self._volumes(), self._seen.inventory)
        if spec.workspace.existing_claim is None and self._own_claim() is None:
            body = build_workspace_claim(self._seen.job, spec, volume_policy.claim_size(spec, draft))
            self._actions.append(CreateClaim(body))
        host = size_host(spec, draft, self._settings, self._out_of_memory())
        draft.record_host(draft.stage, host.memory_bytes, host.memory_reason)
        body = build_stage_job(self._seen.job, spec, draft, self._settings, sized, placement, host)
        self._actions.append(CreateJob(body))

    def _follow(self, child: ChildJob) -> None:
        draft = self._draft
        pods = self._pods_of(child)
        node = max(pods, key=lambda pod: pod.created).node if pods else ""
        draft.see_job(child.created, node)
        if child.suspended and not child.deleting:
            self._actions.append(SuspendJob(child.name, child.uid, suspend=False))
        progress = self._progress()
        if progress is not None:
            draft.report(progress)
        waiting = why_waiting(child, pods, self._now)
        sized = self._verdict if isinstance(self._verdict, Sized) and draft.stage is Stage.TRAIN else None
        if waiting is not None and waiting.reason is Reason.UNSCHEDULABLE and sized is not None:
            draft.go_on(Reason.WAITING_FOR_GPU, why_no_gpu(sized.offers, waiting.message))
        elif waiting is not None:
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
                    if (pod.end is not None and pod.idle) or not pod.node
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

    def _leftovers(self) -> list[ChildJob]:
        """Jobs that are being deleted without having ended: one that was taken back, or of a status that was lost."""
        current = self._current_child()
        return [
            child
            for child in self._own_children()
            if child != current and self._draft.find_attempt(child.stage, child.attempt) is None
        ]

    def _awaited(self) -> str | None:
        """What must be gone before the current attempt may start: the stages share a workspace, so one at a time."""
        if running := self._running_strangers():
            return f"pod {running[0].name} to end"
        if leftovers := self._leftovers():
            return f"Job {leftovers[0].name} to be gone"
        claim = self._own_claim()
        return f"claim {claim.name} to be gone" if claim is not None and claim.deleting else None

    def _progress(self) -> Progress | None:
        """What the current attempt's trainer told last."""
        progress = self._seen.progress
        current = (self._draft.stage, self._draft.attempt)
        return progress if progress is not None and (progress.stage, progress.attempt) == current else None

    def _own_claim(self) -> Claim | None:
        claim = self._seen.claim
        return claim if claim is not None and claim.owner_uid == self._seen.job.uid else None

    def _active_reason(self) -> Reason:
        """The current stage's reason, Pending before the first stage runs."""
        first = self._draft.stage is Stage.PREPARE and self._draft.attempt == 0
        return Reason.PENDING if first else self._draft.stage.active_reason
