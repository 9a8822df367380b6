"""The status of a FineTuneJob under construction: starts from the stored one, ends as the next one to write."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_operator.api.conditions import MAXIMUM_MESSAGE_LENGTH, Condition, Truth
from finetune_operator.api.formats import format_number, format_time
from finetune_operator.api.plan import Plan
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage, child_name
from finetune_operator.contract.result import MergeResult, PrepareResult, Progress, TrainResult
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.outcomes import Ending
from finetune_operator.status import reporting
from finetune_operator.status.record import StatusRecord

MAXIMUM_ATTEMPTS = 20

STAGE_CONDITIONS: dict[Stage, tuple[Condition, ...]] = {
    Stage.PREPARE: (Condition.DATASET_READY, Condition.MODEL_READY),
    Stage.TRAIN: (Condition.TRAINED,),
    Stage.MERGE: (Condition.PUBLISHED,),
}


class StatusDraft(StatusRecord):
    """Edits one status. All text that goes in is bounded to what the CRD takes."""

    def __init__(self, job: JobRecord, now: datetime) -> None:
        """Start from the stored status of `job`; a condition never written before is written as unknown."""
        super().__init__(job, now)
        self.conditions.set_if_missing(Condition.SUCCEEDED, Truth.UNKNOWN, Reason.PENDING)
        self.conditions.set_if_missing(Condition.RECONCILING, Truth.TRUE, Reason.PENDING)
        self.conditions.set_if_missing(Condition.STALLED, Truth.FALSE, Reason.PROGRESSING)
        self.conditions.set_if_missing(Condition.SUSPENDED, Truth.FALSE, Reason.RUNNING)
        for kinds in STAGE_CONDITIONS.values():
            for kind in kinds:
                self.conditions.set_if_missing(kind, Truth.UNKNOWN, Reason.AWAITING_STAGE)

    # -- writing ------------------------------------------------------------------------------------------------

    def accept(self, spec_hash: str, plan: Plan) -> None:
        """Record what the job is: on the first visit, or after its status was lost."""
        self._fields.setdefault("specHash", spec_hash)
        if "stage" not in self._fields:
            self._fields["plan"] = {"choices": reporting.choices(plan.choices)}
            self.begin_stage(Stage.PREPARE)

    def mark_started(self) -> None:
        """Start the job's clock unless it runs."""
        self._fields.setdefault("startTime", format_time(self._now))

    def begin_stage(self, stage: Stage) -> None:
        """Go on to a stage's first attempt."""
        self._fields["stage"] = {
            "name": stage.value,
            "attempt": 0,
            "jobName": child_name(self._job.name, stage, 0),
        }
        self._fields["progress"] = reporting.starting(stage, self._fields.get("progress") or {}, self._now)

    def begin_attempt(self, attempt: int, retry_time: datetime) -> None:
        """Go on to another attempt of the current stage, not before `retry_time`."""
        stage = self.stage
        self._fields["stage"] = {
            "name": stage.value,
            "attempt": attempt,
            "jobName": child_name(self._job.name, stage, attempt),
            "retryTime": format_time(retry_time),
        }
        self._fields["progress"] = reporting.starting(stage, self._fields.get("progress") or {}, self._now)

    def record_config(self, config: Mapping[str, Any]) -> None:
        """Record what the model's config.json says, before anything else of the model is known."""
        self._fields["model"] = {**(self._fields.get("model") or {}), "config": reporting.config(config)}

    def record_plan(self, plan: Mapping[str, Any]) -> None:
        """Record how TRAIN will run; the hosts of stages stay."""
        hosts = self.plan.get("hosts")
        self._fields["plan"] = {**plan, **({"hosts": hosts} if hosts else {})}

    def record_host(self, stage: Stage, memory_bytes: int, reason: str) -> None:
        """Record the host memory of a stage's pod."""
        others = [entry for entry in self.plan.get("hosts") or () if entry["stage"] != stage]
        entry = {"stage": stage.value, "memoryBytes": memory_bytes, "reason": reason[:1024]}
        self._fields["plan"] = {**self.plan, "hosts": [*others, entry]}

    def begin_waiting(self) -> None:
        """Stop the job's clock: it lacks a GPU."""
        waiting = self._fields.get("waiting") or {}
        self._fields["waiting"] = {"since": format_time(self._now), **waiting}

    def end_waiting(self) -> None:
        """Let the job's clock go on."""
        if self.waiting_since is not None:
            self._fields["waiting"] = {"totalSeconds": int(self.waited.total_seconds())}

    def see_job(self, created: datetime, node: str) -> None:
        """Record that the current attempt's Job exists, and where its pod runs."""
        stage = {**self._stored_stage, "startTime": format_time(created)}
        stage.pop("retryTime", None)
        if node:
            stage["node"] = node
        self._fields["stage"] = stage

    def report(self, progress: Progress) -> None:
        """Show a running stage's progress, as often as reporting.updated thinks right."""
        self._fields["progress"] = reporting.updated(self._fields.get("progress") or {}, progress, self._now)

    def record_attempt(self, ending: Ending) -> None:
        """Append the current attempt's end. Failures of the current stage are kept longest: they count as retries."""
        entry: dict[str, Any] = {
            "stage": self.stage.value,
            "attempt": self.attempt,
            "outcome": ending.outcome,
            "reason": ending.reason,
            "message": ending.message[:1024],
            "completionTime": format_time(ending.finished or self._now),
        }
        if self.job_seen:
            entry["startTime"] = self._stored_stage["startTime"]
        if ending.exit_code is not None:
            entry["exitCode"] = ending.exit_code
        if ending.result is not None and ending.result.peak_memory_bytes is not None:
            entry["peakMemoryBytes"] = ending.result.peak_memory_bytes
        if ending.node:
            entry["node"] = ending.node
        if self.stage is Stage.TRAIN:
            train = ending.result.train if ending.result is not None else None
            memory = reporting.memory(self.plan, train.memory if train is not None else None)
            if memory:
                entry["memory"] = memory
        attempts = [*(self._fields.get("attempts") or ()), entry]
        while len(attempts) > MAXIMUM_ATTEMPTS:
            counted = (entry["stage"], "Failed")
            drop = next(
                (index for index, old in enumerate(attempts) if (old["stage"], old["outcome"]) != counted), 0
            )
            del attempts[drop]
        self._fields["attempts"] = attempts

    def fold_prepare(self, result: PrepareResult) -> None:
        """Record what PREPARE found."""
        self._fields["dataset"] = reporting.dataset(result.dataset)
        known = self._fields.get("model") or {}
        self._fields["model"] = {
            **({"config": known["config"]} if "config" in known else {}),
            **reporting.model(result.model),
        }
        self._stage_succeeded(Stage.PREPARE, "")

    def fold_train(self, result: TrainResult) -> None:
        """Record what TRAIN measured."""
        evaluation = result.evaluation
        self._fields["evaluation"] = {
            "rows": evaluation.rows,
            "baseLoss": format_number(evaluation.base_loss),
            "tunedLoss": format_number(evaluation.tuned_loss),
            "difference": format_number(evaluation.difference),
            "interval": [format_number(bound) for bound in evaluation.interval],
            "verdict": evaluation.verdict,
        }
        self._fields.setdefault("progress", {})["loss"] = format_number(result.training_loss)
        self._stage_succeeded(Stage.TRAIN, f"{result.steps} steps on {result.device}")

    def fold_merge(self, result: MergeResult) -> None:
        """Record what MERGE published."""
        self._fields["artifacts"] = [
            artifact.model_dump(mode="json", by_alias=True) for artifact in result.artifacts
        ]
        verification = result.verification
        if verification is not None:
            self._fields["verification"] = {
                "rows": verification.rows,
                "tokens": verification.tokens,
                "klDivergence": format_number(verification.kl_divergence),
                "trainedLoss": format_number(verification.trained_loss),
                "mergedLoss": format_number(verification.merged_loss),
                "prompt": verification.prompt,
                "answer": verification.answer,
            }
        self._stage_succeeded(Stage.MERGE, ", ".join(artifact.uri for artifact in result.artifacts))

    def complete(self) -> None:
        """End the job well."""
        self.end_waiting()
        self._fields["completionTime"] = format_time(self._now)
        self._fields["progress"] = reporting.finished(
            Stage.MERGE, self._fields.get("progress") or {}, self._now
        )
        message = "every stage succeeded and the artifacts are published"
        self.conditions.set(Condition.SUCCEEDED, Truth.TRUE, Reason.COMPLETED, message)
        self.conditions.set(Condition.RECONCILING, Truth.FALSE, Reason.FINISHED)
        self.conditions.set(Condition.STALLED, Truth.FALSE, Reason.FINISHED)
        self.conditions.set(Condition.SUSPENDED, Truth.FALSE, Reason.FINISHED)

    def fail(self, reason: str, message: str, log_tail: tuple[str, ...] = ()) -> None:
        """End the job badly, in its current stage."""
        self.end_waiting()
        message = message[:MAXIMUM_MESSAGE_LENGTH]
        self._fields["completionTime"] = format_time(self._now)
        failure: dict[str, Any] = {"stage": self.stage.value, "reason": str(reason), "message": message}
        if log_tail:
            failure["logTail"] = list(log_tail)
        self._fields["failure"] = failure
        self.conditions.set(Condition.SUCCEEDED, Truth.FALSE, reason, message)
        self.conditions.set(Condition.RECONCILING, Truth.FALSE, Reason.FINISHED)
        self.conditions.set(Condition.STALLED, Truth.TRUE, reason, message)
        self.conditions.set(Condition.SUSPENDED, Truth.FALSE, Reason.FINISHED)
        for kinds in STAGE_CONDITIONS.values():
            for kind in kinds:
                if self.conditions.status(kind) is Truth.UNKNOWN:
                    text = f"the job failed in {self.stage.value}: {reason}"
                    self.conditions.set(kind, Truth.FALSE, Reason.STAGE_FAILED, text)

    def go_on(self, reason: Reason, message: str) -> None:
        """Say what the active job does or waits for. Its clock stops while it waits for a GPU."""
        if reason is Reason.WAITING_FOR_GPU:
            self.begin_waiting()
        else:
            self.end_waiting()
        self.conditions.set(Condition.SUCCEEDED, Truth.UNKNOWN, reason, message)
        self.conditions.set(Condition.RECONCILING, Truth.TRUE, reason, message)
        self.conditions.set(Condition.STALLED, Truth.FALSE, Reason.PROGRESSING)
        self.conditions.set(Condition.SUSPENDED, Truth.FALSE, Reason.RUNNING)

    def stall(self, reason: Reason, message: str) -> None:
        """Say that the job cannot go on as things stand; it is not over, and its clock stops."""
        message = message[:MAXIMUM_MESSAGE_LENGTH]
        self.begin_waiting()
        self.conditions.set(Condition.SUCCEEDED, Truth.UNKNOWN, reason, message)
        self.conditions.set(Condition.RECONCILING, Truth.FALSE, reason, message)
        self.conditions.set(Condition.STALLED, Truth.TRUE, reason, message)
        self.conditions.set(Condition.SUSPENDED, Truth.FALSE, Reason.RUNNING)

    def suspend(self) -> None:
        """Say that the job is suspended; its clock starts anew when it is resumed, as a batch/v1 Job's does."""
        self._fields.pop("startTime", None)
        self._fields.pop("waiting", None)
        reason, message = Reason.SUSPENDED_BY_USER, "spec.suspend is true"
        self.conditions.set(Condition.SUCCEEDED, Truth.UNKNOWN, reason, message)
        self.conditions.set(Condition.RECONCILING, Truth.FALSE, reason, message)
        self.conditions.set(Condition.STALLED, Truth.FALSE, reason)
        self.conditions.set(Condition.SUSPENDED, Truth.TRUE, reason, message)

    def to_status(self) -> dict[str, Any]:
        """The finished status, ready to apply."""
        return {
            **self._fields,
            "observedGeneration": self._job.generation,
            "phase": self._phase(),
            "conditions": self.conditions.to_list(),
        }

    def _phase(self) -> str:
        if self.finished:
            return "Succeeded" if self.succeeded else "Failed"
        if self.conditions.is_true(Condition.SUSPENDED):
            return "Suspended"
        if self.conditions.is_true(Condition.STALLED):
            return "Stalled"
        if self.stage is Stage.PREPARE and not self.job_seen and self.attempt == 0:
            return "Pending"
        return self.stage.active_reason.value

    def _stage_succeeded(self, stage: Stage, message: str) -> None:
        for kind in STAGE_CONDITIONS[stage]:
            self.conditions.set(kind, Truth.TRUE, Reason.STAGE_SUCCEEDED, message)
