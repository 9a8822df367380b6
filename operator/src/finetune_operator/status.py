"""The status of a FineTuneJob under construction: starts from the stored one, ends as the next one to write."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_operator import reporting
from finetune_operator.conditions import MAXIMUM_MESSAGE_LENGTH, Condition, Conditions, Truth
from finetune_operator.endings import Ending
from finetune_operator.formats import format_number, format_time, parse_time
from finetune_operator.observation import JobRecord
from finetune_operator.planning import Plan
from finetune_operator.reasons import Reason
from finetune_operator.result import MergeResult, PrepareResult, Progress, TrainResult
from finetune_operator.stages import Stage, child_name

MAXIMUM_ATTEMPTS = 20

STAGE_CONDITIONS: dict[Stage, tuple[Condition, ...]] = {
    Stage.PREPARE: (Condition.DATASET_READY, Condition.MODEL_READY),
    Stage.TRAIN: (Condition.TRAINED,),
    Stage.MERGE: (Condition.PUBLISHED,),
}


class StatusDraft:
    """Edits one status. All text that goes in is bounded to what the CRD takes."""

    def __init__(self, job: JobRecord, now: datetime) -> None:
        """Start from the stored status of `job`; a condition never written before is written as unknown."""
        self._job = job
        self._now = now
        self._fields: dict[str, Any] = copy.deepcopy(dict(job.status))
        self.conditions = Conditions(self._fields.get("conditions") or [], job.generation, now)
        self.conditions.set_if_missing(Condition.SUCCEEDED, Truth.UNKNOWN, Reason.PENDING)
        self.conditions.set_if_missing(Condition.RECONCILING, Truth.TRUE, Reason.PENDING)
        self.conditions.set_if_missing(Condition.STALLED, Truth.FALSE, Reason.PROGRESSING)
        self.conditions.set_if_missing(Condition.SUSPENDED, Truth.FALSE, Reason.RUNNING)
        for kinds in STAGE_CONDITIONS.values():
            for kind in kinds:
                self.conditions.set_if_missing(kind, Truth.UNKNOWN, Reason.AWAITING_STAGE)

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the job has ended, well or badly."""
        return self.conditions.status(Condition.SUCCEEDED) is not Truth.UNKNOWN

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended well."""
        return self.conditions.is_true(Condition.SUCCEEDED)

    @property
    def stage(self) -> Stage:
        """The current stage; PREPARE for a job without a record."""
        return Stage(self._stored_stage.get("name", Stage.PREPARE))

    @property
    def attempt(self) -> int:
        """Number of the current stage's current attempt."""
        return int(self._stored_stage.get("attempt", 0))

    @property
    def job_seen(self) -> bool:
        """Whether the current attempt's Job has been seen in the cluster."""
        return "startTime" in self._stored_stage

    @property
    def attempt_duration(self) -> timedelta:
        """How long the current attempt's Job has been there; zero for one that was never seen."""
        start = self._time(self._stored_stage, "startTime")
        return timedelta() if start is None else max(self._now - start, timedelta())

    @property
    def retry_time(self) -> datetime | None:
        """When the current attempt may start."""
        return self._time(self._stored_stage, "retryTime")

    @property
    def start_time(self) -> datetime | None:
        """When the job was accepted or last resumed."""
        return self._time(self._fields, "startTime")

    @property
    def spec_hash(self) -> str | None:
        """The recorded spec hash."""
        return self._fields.get("specHash")

    def find_attempt(self, stage: Stage, attempt: int) -> Mapping[str, Any] | None:
        """The record of an ended attempt."""
        for entry in self._fields.get("attempts") or ():
            if entry["stage"] == stage and entry["attempt"] == attempt:
                return dict(entry)
        return None

    def count_attempts(self, stage: Stage, outcome: str) -> int:
        """How many recorded attempts of the stage ended so."""
        entries = self._fields.get("attempts") or ()
        return sum(entry["stage"] == stage and entry["outcome"] == outcome for entry in entries)

    # -- writing ------------------------------------------------------------------------------------------------

    def accept(self, spec_hash: str, plan: Plan) -> None:
        """Record what the job is: on the first visit, or after its status was lost."""
        self._fields.setdefault("specHash", spec_hash)
        if "stage" not in self._fields:
            self._fields["plan"] = [
                {"name": choice.name, "value": choice.value, "reason": choice.reason}
                for choice in plan.choices
            ]
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
        self._fields["model"] = result.model.model_dump(mode="json", by_alias=True, exclude_none=True)
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
        """Say what the active job does or waits for."""
        self.conditions.set(Condition.SUCCEEDED, Truth.UNKNOWN, reason, message)
        self.conditions.set(Condition.RECONCILING, Truth.TRUE, reason, message)
        self.conditions.set(Condition.STALLED, Truth.FALSE, Reason.PROGRESSING)
        self.conditions.set(Condition.SUSPENDED, Truth.FALSE, Reason.RUNNING)

    def suspend(self) -> None:
        """Say that the job is suspended; its clock starts anew when it is resumed, as a batch/v1 Job's does."""
        self._fields.pop("startTime", None)
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
        if self.stage is Stage.PREPARE and not self.job_seen and self.attempt == 0:
            return "Pending"
        return self.stage.active_reason.value

    def _stage_succeeded(self, stage: Stage, message: str) -> None:
        for kind in STAGE_CONDITIONS[stage]:
            self.conditions.set(kind, Truth.TRUE, Reason.STAGE_SUCCEEDED, message)

    @property
    def _stored_stage(self) -> Mapping[str, Any]:
        return self._fields.get("stage") or {}

    @staticmethod
    def _time(fields: Mapping[str, Any], name: str) -> datetime | None:
        text = fields.get(name)
        return None if text is None else parse_time(text)
