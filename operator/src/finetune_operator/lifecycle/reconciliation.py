"""One decision in the making: the observation, and the results of the steps so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from finetune_operator.api.conditions import Condition, Truth
from finetune_operator.api.reasons import Reason, ReasonClass
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage, child_name
from finetune_operator.contract.result import Progress
from finetune_operator.contract.run_spec import FAILED_RUNS_SINCE
from finetune_operator.contract.tracking import NO_TRACKERS, Trackers, choose_trackers
from finetune_operator.lifecycle.actions import Action, Decision, Need, SuspendJob
from finetune_operator.lifecycle.retry import next_attempt
from finetune_operator.lifecycle.sizing import Blocked, Feasible, Infeasible
from finetune_operator.observed.lost_nodes import lost_node
from finetune_operator.observed.movement import Movement, describe_standstill, stands_still
from finetune_operator.observed.observation import ChildJob, Claim, JobRecord, Observation, Pod
from finetune_operator.observed.outcomes import (
    AttemptOutcome,
    attempt_outcome,
    no_progress,
    node_lost,
    stage_lost,
)
from finetune_operator.observed.pending import newest_pods
from finetune_operator.settings import Settings
from finetune_operator.status.draft import StatusDraft


@dataclass(frozen=True)
class Reconciliation:
    """The input and the output of every step. It is immutable: a step returns a changed copy."""

    observation: Observation
    settings: Settings
    now: datetime
    draft: StatusDraft
    """The status to write."""
    spec: FineTuneJobSpec | None = None
    """The spec, once the first step has read it; None if it cannot be read."""
    feasibility: Feasible | Blocked | Infeasible | None = None
    """The verdict on TRAIN; None if it is not known yet or does not matter any more."""
    held: bool = False
    """True if the job must be left as it is: this version cannot read its spec, or its status."""
    actions: tuple[Action, ...] = ()
    held_actions: tuple[Action, ...] = ()
    """Actions that a refusal of the API server holds back."""
    requeue_times: tuple[datetime, ...] = ()

    @classmethod
    def begin(cls, observation: Observation, settings: Settings, now: datetime) -> Self:
        """Start from the stored status, with nothing decided."""
        return cls(observation, settings, now, StatusDraft.begin(observation.job, now))

    def to_decision(self) -> Decision:
        """The decision of all steps together."""
        return Decision(
            status=self.draft.to_status(),
            actions=self.actions,
            held=self.held_actions,
            requeue_time=min(self.requeue_times, default=None),
        )

    # -- copies -------------------------------------------------------------------------------------------------

    def with_draft(self, draft: StatusDraft) -> Self:
        """A copy with another status."""
        return replace(self, draft=draft)

    def with_actions(self, *actions: Action) -> Self:
        """A copy with further actions, after those that are already decided."""
        return replace(self, actions=(*self.actions, *actions))

    def with_requeue(self, time: datetime) -> Self:
        """A copy that asks for another decision at `time` at the latest."""
        return replace(self, requeue_times=(*self.requeue_times, time))

    def progressing(self, reason: Reason, message: str) -> Self:
        """A copy in which the job progresses for this reason."""
        return self.with_draft(self.draft.set_progressing(reason, message))

    def on_hold(self, message: str) -> Self:
        """A copy that leaves the job, its Jobs and its pods as they are, and says why. No later step applies."""
        return replace(self, draft=self.draft.hold(message), held=True)

    def with_child_suspended(self) -> Self:
        """A copy that suspends the current attempt's Job, if it exists and is not suspended yet.

        A suspension by somebody else, such as a queue, stays that of somebody else, also if it has just come.
        """
        child = self.current_child
        if child is None or child.suspended or child.deleting:
            return self
        return self.with_actions(
            SuspendJob(
                child.name, child.uid, suspend=True, resource_version=child.resource_version, kind=child.kind
            )
        )

    def with_attempt_left(self, reason: str, message: str) -> Self:
        """A copy that gives the current attempt up and begins the next one, which costs no retry.

        It is recorded only if its pod has had a node: from then on, the workspace may hold a checkpoint of its plan.
        """
        draft, child = self.draft, self.current_child
        node = (self.node_of(child) if child is not None else "") or draft.node
        if node:
            kind = ReasonClass.INTERRUPTED
            draft = draft.record_attempt(
                AttemptOutcome("Interrupted", kind, reason, message[:1024], node=node)
            )
        following = next_attempt(draft.attempt, ReasonClass.WAITING) or 0
        return self.with_draft(draft.begin_attempt(following, self.now))

    # -- which steps apply --------------------------------------------------------------------------------------

    @property
    def active_spec(self) -> FineTuneJobSpec | None:
        """The spec of a job that has not ended; None for one that has."""
        return None if self.draft.finished else self.spec

    @property
    def runnable_spec(self) -> FineTuneJobSpec | None:
        """The spec of a job whose current stage may run now; None if it has ended, is suspended or stalled."""
        spec = self.active_spec
        return None if spec is None or spec.suspend or isinstance(self.feasibility, Blocked) else spec

    @property
    def wants_copies(self) -> bool:
        """True from the end of a job that wants its report at the destinations."""
        return self.draft.finished and self.spec is not None and self.spec.output.reports is not None

    @property
    def untold_trackers(self) -> Trackers:
        """The trackers that have no record of a job because it has failed. MERGE tells of one that succeeds."""
        if not self.draft.finished or self.draft.succeeded or self.spec is None:
            return NO_TRACKERS
        trainer = self.settings.trainer
        found = choose_trackers(self.spec.tracking, trainer.tracking).for_failed_runs()
        # Another image may not know the task.
        return found if self.draft.speaks(FAILED_RUNS_SINCE, trainer.image) else NO_TRACKERS

    @property
    def awaits_report(self) -> bool:
        """True from the end of a job until it is known what the destinations and trackers that wait for it have got."""
        conditions = self.draft.conditions
        return (self.wants_copies and conditions.status(Condition.REPORT_PUBLISHED) is Truth.UNKNOWN) or (
            bool(self.untold_trackers) and conditions.status(Condition.TRACKED) is Truth.UNKNOWN
        )

    # -- what is observed ---------------------------------------------------------------------------------------

    @property
    def job(self) -> JobRecord:
        """The FineTuneJob."""
        return self.observation.job

    @property
    def own_children(self) -> tuple[ChildJob, ...]:
        """The Jobs of this very FineTuneJob, not of an earlier one of the same name."""
        return tuple(child for child in self.observation.children if child.owner_uid == self.job.uid)

    @property
    def current_child(self) -> ChildJob | None:
        """The current attempt's Job."""
        current = (self.draft.stage, self.draft.attempt)
        return next((child for child in self.own_children if (child.stage, child.attempt) == current), None)

    @property
    def own_claim(self) -> Claim | None:
        """The workspace's claim, if the operator made it for this very FineTuneJob."""
        claim = self.observation.claim
        return claim if claim is not None and claim.owner_uid == self.job.uid else None

    @property
    def lacks_claim(self) -> bool:
        """True if PREPARE's Job exists without the workspace's claim, so that its pod cannot start."""
        spec, child = self.active_spec, self.current_child
        if spec is None or spec.workspace.existing_claim is not None or self.own_claim is not None:
            return False
        if child is None or child.stage is not Stage.PREPARE or child.deleting or child.finished:
            return False
        return not any(pod.node for pod in self.pods_of(child))

    @property
    def progress(self) -> Progress | None:
        """The last report of the current attempt's trainer."""
        progress = self.observation.progress
        current = (self.draft.stage, self.draft.attempt)
        return progress if progress is not None and (progress.stage, progress.attempt) == current else None

    def pods_of(self, child: ChildJob) -> tuple[Pod, ...]:
        """The pods of one Job."""
        return tuple(pod for pod in self.observation.pods if pod.owner_uid == child.uid)

    def node_of(self, child: ChildJob) -> str:
        """The node of the Job's newest pod; empty if it has no pod or the pod has no node.

        Of several pods that run at the same time, the first with a node counts.
        """
        return next((pod.node for pod in newest_pods(self.pods_of(child)) if pod.node), "")

    def outcome(self, spec: FineTuneJobSpec) -> AttemptOutcome | None:
        """The outcome of the current attempt; None while it continues or has not started."""
        child = self.current_child
        if child is not None:
            pods = self.pods_of(child)
            found = attempt_outcome(uid=self.job.uid, child=child, pods=pods, suspending=spec.suspend)
            stopping = spec.suspend or child.suspended
            return (
                found
                if found is not None or stopping
                else self._loss_of_node(child, pods) or self._standstill(spec)
            )
        if self.draft.job_seen:
            name = child_name(self.job.name, self.draft.stage, self.draft.attempt)
            return stage_lost(f"Job {name} was deleted before it ended")
        return None

    @property
    def movement(self) -> Movement | None:
        """What the polls of the current attempt's running trainer have shown; None if it has not answered.

        The first of several pods waits for the others, so it must move only after all of them have started.
        """
        child, found = self.current_child, self.observation.movement
        if child is None or found is None or child.deleting:
            return None
        running = [pod for pod in self.pods_of(child) if pod.live and pod.running and not pod.deleting]
        if len(running) < child.pods or all(pod.uid != found.pod_uid for pod in running):
            return None
        if child.pods == 1:
            return found
        return replace(found, since=max(found.since, *(pod.started or pod.created for pod in running)))

    def _standstill(self, spec: FineTuneJobSpec) -> AttemptOutcome | None:
        """The outcome of an attempt whose trainer has not moved for too long."""
        movement, seconds = self.movement, spec.lifecycle.no_progress_seconds
        if movement is None or seconds is None or not stands_still(movement, timedelta(seconds=seconds)):
            return None
        pod = next(pod for pod in self.observation.pods if pod.uid == movement.pod_uid)
        return no_progress(describe_standstill(movement, timedelta(seconds=seconds), pod.name), pod.node)

    def _loss_of_node(self, child: ChildJob, pods: tuple[Pod, ...]) -> AttemptOutcome | None:
        """The outcome of an attempt whose only live pods hang on lost nodes, or one of several pods that need each other."""
        live = [pod for pod in pods if pod.live]
        losses = [
            (loss, pod) for pod in live if (loss := lost_node(pod, self.observation.inventory)) is not None
        ]
        if not losses or (child.pods == 1 and len(losses) < len(live)):
            return None
        message, lost = losses[0]
        return node_lost(message, uid=self.job.uid, child=child, pods=pods, lost=lost)


Step = Callable[[Reconciliation], Reconciliation | Need]
"""One policy. It returns its input unchanged if it does not apply, or what it needs to know first."""
