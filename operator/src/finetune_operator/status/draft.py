"""The next status of a FineTuneJob: it starts from the stored one and ends as the one to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil
from typing import Any, Self

from finetune_operator.api.conditions import MAXIMUM_MESSAGE_LENGTH, Condition, Conditions, Truth
from finetune_operator.api.formats import format_number, format_time
from finetune_operator.api.plan import Plan
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage, child_name
from finetune_operator.contract.artifacts import TrackerRecord
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.contract.result import MergeResult, PrepareResult, Progress, TrainResult
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.outcomes import AttemptOutcome
from finetune_operator.status import reporting, usage
from finetune_operator.status.attempt_list import appended, failures
from finetune_operator.status.condition_table import Entry, JobState, conditions_of
from finetune_operator.status.record import StatusRecord

STAGE_CONDITIONS: dict[Stage, tuple[Condition, ...]] = {
    Stage.PREPARE: (Condition.DATASET_READY, Condition.MODEL_READY),
    Stage.TRAIN: (Condition.TRAINED,),
    Stage.MERGE: (Condition.PUBLISHED,),
}


@dataclass(frozen=True)
class StatusDraft(StatusRecord):
    """One version of the next status. It is immutable: every edit returns a changed copy.

    All texts are cut to the lengths that the CRD allows.
    """

    @classmethod
    def begin(cls, job: JobRecord, now: datetime) -> Self:
        """Start from the stored status of `job`; a condition that was never written gets its first value."""
        draft = cls.read(job, now)
        for entry in conditions_of(JobState.PROGRESSING, Reason.PENDING):
            draft.conditions.set_if_missing(entry.condition, entry.status, entry.reason)
        for kinds in STAGE_CONDITIONS.values():
            for kind in kinds:
                draft.conditions.set_if_missing(kind, Truth.UNKNOWN, Reason.AWAITING_STAGE)
        return draft

    # -- the job ------------------------------------------------------------------------------------------------

    def accept(self, spec_hash: str, plan: Plan) -> Self:
        """Record the spec's hash and the first stage: on the first visit, or after the status was lost."""
        draft = self.with_fields(specHash=self.fields.get("specHash", spec_hash))
        if "stage" in self.fields:
            return draft
        return draft.with_fields(plan=reporting.plan(plan)).begin_stage(Stage.PREPARE)

    def mark_started(self, time: datetime) -> Self:
        """Start the job's clock at `time` unless it is already running."""
        return self.with_fields(startTime=self.fields.get("startTime", format_time(time)))

    def pause_deadline(self) -> Self:
        """Stop the job's clock, since it waits for a GPU or a queue."""
        waiting = self.fields.get("waiting") or {}
        return self.with_fields(waiting={"since": format_time(self.now), **waiting})

    def resume_deadline(self) -> Self:
        """Let the job's clock run again."""
        if self.waiting_since is None:
            return self
        return self.with_fields(waiting={"totalSeconds": int(self.waited.total_seconds())})

    # -- stages and attempts ------------------------------------------------------------------------------------

    def begin_stage(self, stage: Stage) -> Self:
        """Continue with the first attempt of `stage`."""
        return self._begin(stage, 0)

    def begin_attempt(self, attempt: int, retry_time: datetime) -> Self:
        """Continue with another attempt of the current stage, which starts at `retry_time` at the earliest."""
        return self._begin(self.stage, attempt, retryTime=format_time(retry_time))

    def record_job(self, created: datetime, node: str) -> Self:
        """Record that the current attempt's Job exists, and the node of its pod (empty if it has none)."""
        stage = {**self._stored_stage, "startTime": format_time(created)}
        stage.pop("retryTime", None)
        if node:
            stage["node"] = node
        return self.with_fields(stage=stage)

    def record_image_pull(self, seconds: float) -> Self:
        """Record the seconds for which the current attempt's pod waited for its image, rounded up."""
        return self.with_fields(stage={**self._stored_stage, "imagePullSeconds": ceil(seconds)})

    def record_gpu_time(self, pods: Sequence[usage.PodTime]) -> Self:
        """Record the time for which these pods of the current attempt hold GPUs, the oldest first."""
        return replace(self, fields=usage.observe(self.fields, pods, self.now))

    def settle_gpu_time(self, ended: datetime, *, succeeded: bool) -> tuple[Self, dict[str, Any]]:
        """Add the current attempt's GPU time to the job's, and return the members of the attempt's entry."""
        fields, entry = usage.settle(self.fields, ended, succeeded=succeeded)
        return replace(self, fields=fields), entry

    def next_progress(self, progress: Progress) -> datetime | None:
        """The time at which this progress may be shown; None if it is shown already."""
        return reporting.next_update(self.fields.get("progress") or {}, progress)

    def record_progress(self, progress: Progress) -> Self:
        """Show a running stage's progress, as often as `reporting.updated` allows."""
        return self.with_fields(
            progress=reporting.updated(self.fields.get("progress") or {}, progress, self.now)
        )

    def record_attempt(self, outcome: AttemptOutcome) -> Self:
        """Append the current attempt's outcome to those of `attempt_list.appended`."""
        entry: dict[str, Any] = {
            "stage": self.stage.value,
            "attempt": self.attempt,
            "outcome": outcome.outcome,
            "reason": outcome.reason,
            "message": outcome.message[:1024],
            "completionTime": format_time(outcome.finished or self.now),
        }
        if self.job_seen:
            entry["startTime"] = self._stored_stage["startTime"]
        if "imagePullSeconds" in self._stored_stage:
            entry["imagePullSeconds"] = self._stored_stage["imagePullSeconds"]
        if outcome.exit_code is not None:
            entry["exitCode"] = outcome.exit_code
        if outcome.result is not None and outcome.result.peak_memory_bytes is not None:
            entry["peakMemoryBytes"] = outcome.result.peak_memory_bytes
        if outcome.node:
            entry["node"] = outcome.node
        entry |= failures(outcome)
        if self.stage is Stage.TRAIN:
            train = outcome.result.train if outcome.result is not None else None
            rungs = reporting.rungs(train)
            # The estimate is that of the planned rung.
            memory = reporting.memory({} if rungs else self.plan, train.memory if train is not None else None)
            if memory:
                entry["memory"] = memory
            entry |= rungs
            if train is not None and train.tokens_per_second is not None:
                entry["tokensPerSecond"] = format_number(train.tokens_per_second)
        succeeded = outcome.outcome == "Succeeded"
        draft, used = self.settle_gpu_time(outcome.finished or self.now, succeeded=succeeded)
        return draft.with_fields(attempts=appended(self.fields.get("attempts") or (), {**entry, **used}))

    # -- results of stages --------------------------------------------------------------------------------------

    def record_trainer(self, contract_version: str, image: str) -> Self:
        """Record the trainer of the last PREPARE with a result, and the version of the contract that it speaks."""
        return self.with_fields(trainer={"contractVersion": contract_version, "image": image[:1024]})

    def record_config(self, config: Mapping[str, Any]) -> Self:
        """Record the model's config.json, before anything else about the model is known."""
        return self.with_fields(
            model={**(self.fields.get("model") or {}), "config": reporting.config(config)}
        )

    def record_trace(self, trace: MemoryTrace) -> Self:
        """Record the model's traced memory, before its weights are fetched."""
        return self.with_fields(model={**(self.fields.get("model") or {}), "trace": reporting.trace(trace)})

    def record_plan(self, plan: Mapping[str, Any]) -> Self:
        """Record the plan of TRAIN; the hosts of stages stay."""
        hosts = self.plan.get("hosts")
        return self.with_fields(plan={**plan, **({"hosts": hosts} if hosts else {})})

    def record_host(self, stage: Stage, memory_bytes: int, reason: str) -> Self:
        """Record the host memory of a stage's pod."""
        others = [entry for entry in self.plan.get("hosts") or () if entry["stage"] != stage]
        entry = {"stage": stage.value, "memoryBytes": memory_bytes, "reason": reason[:1024]}
        return self.with_fields(plan={**self.plan, "hosts": [*others, entry]})

    def apply_prepare_result(self, result: PrepareResult) -> Self:
        """Record the dataset and the model that PREPARE delivered."""
        known = self.fields.get("model") or {}
        config = {name: known[name] for name in ("config", "trace") if name in known}
        draft = self.with_fields(
            dataset=reporting.dataset(result.dataset), model={**config, **reporting.model(result.model)}
        )
        return draft.with_stage_succeeded(Stage.PREPARE, "")

    def apply_train_result(self, result: TrainResult) -> Self:
        """Record the losses that TRAIN measured."""
        loss = {"loss": format_number(result.training_loss)}
        draft = self.with_fields(
            evaluation=None if result.evaluation is None else reporting.evaluation(result.evaluation),
            progress={**self.fields.get("progress", {}), **loss},
        )
        if result.batching is not None:
            draft = draft.with_fields(batching=reporting.batching(result.batching))
        if result.attention is not None:
            draft = draft.with_fields(attention=reporting.members(result.attention))
        if result.kernels is not None:
            draft = draft.with_fields(kernels=reporting.members(result.kernels))
        if result.selection is not None:
            draft = draft.with_fields(selection=reporting.selection(result.selection))
        return draft.with_stage_succeeded(Stage.TRAIN, reporting.trained(result)[:MAXIMUM_MESSAGE_LENGTH])

    def apply_merge_result(self, result: MergeResult) -> Self:
        """Record the artifacts that MERGE published."""
        artifacts = [
            artifact.model_dump(mode="json", by_alias=True, exclude_none=True)
            for artifact in result.artifacts
        ]
        draft = self.with_fields(artifacts=artifacts)
        message = ", ".join(artifact.uri for artifact in result.artifacts)
        if result.publications:
            draft = draft.with_fields(publications=reporting.publications(result.publications))
            message = reporting.published(result)
        if result.tracking:
            draft = draft.with_tracking(result.tracking)
        if result.verification is not None:
            draft = draft.with_fields(verification=reporting.verification(result.verification))
            message = "; ".join(filter(None, (message, reporting.proof(result.verification))))
        return draft.with_stage_succeeded(Stage.MERGE, message[:MAXIMUM_MESSAGE_LENGTH])

    def with_tracking(self, records: Sequence[TrackerRecord]) -> Self:
        """Record what the trackers have. A tracker that failed shows in the condition and changes nothing else."""
        failed = [each for each in records if not each.recorded]
        truth, reason = (Truth.FALSE, Reason.TRACKER_FAILED) if failed else (Truth.TRUE, Reason.RUN_RECORDED)
        entry = Entry(Condition.TRACKED, truth, reason, reporting.tracked(records))
        return self.with_fields(tracking=reporting.tracking(records)).with_conditions([entry])

    # -- the state of the job: one row of the condition table each ----------------------------------------------

    def set_progressing(self, reason: Reason, message: str) -> Self:
        """The job runs or waits for something that can come by itself.

        A wait for a GPU or for a queue pauses its deadline.
        """
        waits = reason in {Reason.WAITING_FOR_GPU, Reason.JOB_SUSPENDED}
        draft = self.pause_deadline() if waits else self.resume_deadline()
        return draft.with_state(JobState.PROGRESSING, reason, message)

    def stall(self, reason: Reason, message: str) -> Self:
        """Nothing in the cluster suits the job. It has not ended, and its deadline is paused."""
        return self.pause_deadline().with_state(JobState.STALLED, reason, message)

    def queue(self, message: str) -> Self:
        """A queue holds the current stage until there is quota for it, and the deadline is paused meanwhile."""
        return self.pause_deadline().with_state(JobState.QUEUED, Reason.QUOTA_PENDING, message)

    def hold(self, message: str) -> Self:
        """This version cannot read the job. Everything stays as it is, except for the reason that people read."""
        return self.with_conditions(
            Entry(condition, self.conditions.status(condition), Reason.VERSION_SKEW, message)
            for condition in (Condition.SUCCEEDED, Condition.RECONCILING)
        )

    def suspend(self) -> Self:
        """The user has suspended the job. Its clock restarts when it is resumed, as a batch/v1 Job's does.

        A resumed job does not wait for its next attempt: who resumes it may have removed the cause.
        """
        stage = {name: value for name, value in self._stored_stage.items() if name != "retryTime"}
        draft = self.with_fields(startTime=None, waiting=None, stage=stage or None)
        return draft.with_state(JobState.SUSPENDED, Reason.SUSPENDED_BY_USER, "spec.suspend is true")

    def complete(self) -> Self:
        """The job has succeeded."""
        progress = reporting.finished(Stage.MERGE, self.fields.get("progress") or {}, self.now)
        draft = self.resume_deadline().with_fields(completionTime=format_time(self.now), progress=progress)
        message = "every stage succeeded and the artifacts are published"
        return draft.with_state(JobState.COMPLETED, Reason.COMPLETED, message)

    def fail(self, reason: str, message: str, log_tail: tuple[str, ...] = ()) -> Self:
        """The job has failed in its current stage."""
        message = message[:MAXIMUM_MESSAGE_LENGTH]
        failure: dict[str, Any] = {"stage": self.stage.value, "reason": str(reason), "message": message}
        if log_tail:
            failure["logTail"] = list(log_tail)
        draft, _ = self.resume_deadline().settle_gpu_time(self.now, succeeded=False)
        draft = draft.with_fields(completionTime=format_time(self.now), failure=failure)
        return draft.with_state(JobState.FAILED, reason, message).with_open_stages_failed(reason)

    # -- the result ---------------------------------------------------------------------------------------------

    def to_status(self) -> dict[str, Any]:
        """The complete status, ready to apply."""
        return {
            **self.fields,
            "observedGeneration": self.job.generation,
            "phase": self._phase(),
            "conditions": self.conditions.to_list(),
        }

    def _phase(self) -> str:
        if self.conditions.reason(Condition.SUCCEEDED) == Reason.VERSION_SKEW:
            # The stage may be one that this version does not know.
            return str(self.fields.get("phase", "Pending"))
        if self.finished:
            return "Succeeded" if self.succeeded else "Failed"
        if self.conditions.is_true(Condition.SUSPENDED):
            return "Suspended"
        if self.conditions.is_true(Condition.STALLED):
            return "Stalled"
        if self.stage is Stage.PREPARE and not self.job_seen and self.attempt == 0:
            return "Pending"
        return self.stage.active_reason.value

    # -- edits --------------------------------------------------------------------------------------------------

    def with_fields(self, **changes: Any) -> Self:
        """A copy with these top-level fields of the status; None removes a field."""
        removed = {name for name, value in changes.items() if value is None}
        fields = {**self.fields, **changes}
        return replace(self, fields={name: fields[name] for name in fields if name not in removed})

    def with_conditions(self, entries: Iterable[Entry]) -> Self:
        """A copy with these conditions."""
        conditions = Conditions(self.conditions.to_list(), self.job.generation, self.now)
        for entry in entries:
            conditions.set(entry.condition, entry.status, entry.reason, entry.message)
        return replace(self, conditions=conditions)

    def _begin(self, stage: Stage, attempt: int, **times: str) -> Self:
        current = {
            "name": stage.value,
            "attempt": attempt,
            "jobName": child_name(self.job.name, stage, attempt),
            **times,
        }
        progress = reporting.starting(stage, self.fields.get("progress") or {}, self.now)
        draft, _ = self.settle_gpu_time(self.now, succeeded=False)
        return draft.with_fields(stage=current, progress=progress)

    def with_state(self, state: JobState, reason: str, message: str) -> Self:
        """A copy with the four conditions of this state."""
        return self.with_conditions(conditions_of(state, reason, message))

    def with_stage_succeeded(self, stage: Stage, message: str) -> Self:
        """A copy in which the conditions of this stage are true."""
        return self.with_conditions(
            Entry(condition, Truth.TRUE, Reason.STAGE_SUCCEEDED, message)
            for condition in STAGE_CONDITIONS[stage]
        )

    def with_open_stages_failed(self, reason: str) -> Self:
        """A copy in which the conditions of every stage that has not succeeded are false."""
        text = f"the job failed in {self.stage.value}: {reason}"
        return self.with_conditions(
            Entry(condition, Truth.FALSE, Reason.STAGE_FAILED, text)
            for conditions in STAGE_CONDITIONS.values()
            for condition in conditions
            if self.conditions.status(condition) is Truth.UNKNOWN
        )
