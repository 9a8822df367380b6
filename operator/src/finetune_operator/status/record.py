"""Reads a stored status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from pydantic import ValidationError

from finetune_operator.api.conditions import Condition, Conditions, Truth
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import DESTINATION_REASONS, Reason
from finetune_operator.api.stages import Stage
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.observed.observation import JobRecord


@dataclass(frozen=True)
class StatusRecord:
    """Reads one status, which it never changes."""

    job: JobRecord
    now: datetime
    fields: Mapping[str, Any]
    """The top-level fields of the status. Their values are never edited in place."""
    conditions: Conditions

    @classmethod
    def read(cls, job: JobRecord, now: datetime) -> Self:
        """Read the stored status of `job`."""
        conditions = Conditions(job.status.get("conditions") or [], job.generation, now)
        return cls(job, now, job.status, conditions)

    @property
    def finished(self) -> bool:
        """True once the job has ended, successfully or not."""
        return self.conditions.status(Condition.SUCCEEDED) is not Truth.UNKNOWN

    @property
    def succeeded(self) -> bool:
        """True once the job has succeeded."""
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
        """True once the current attempt's Job has been seen in the cluster."""
        return "startTime" in self._stored_stage

    @property
    def node_seen(self) -> bool:
        """True once a pod of the current attempt has had a node."""
        return "node" in self._stored_stage

    @property
    def node(self) -> str:
        """The node of the current attempt's last pod that had one; empty if none had."""
        return str(self._stored_stage.get("node", ""))

    @property
    def starting_reason(self) -> Reason:
        """The reason while the current attempt starts: Pending before the first attempt of the first stage runs."""
        if self.awaits_destination:
            return Reason.WAITING_FOR_DESTINATION
        first = self.stage is Stage.PREPARE and self.attempt == 0
        return Reason.PENDING if first else self.stage.active_reason

    @property
    def attempt_duration(self) -> timedelta:
        """Age of the current attempt's Job; zero if the Job has never been seen."""
        start = self._time(self._stored_stage, "startTime")
        return timedelta() if start is None else max(self.now - start, timedelta())

    @property
    def retry_time(self) -> datetime | None:
        """The earliest start of the current attempt."""
        return self._time(self._stored_stage, "retryTime")

    @property
    def start_time(self) -> datetime | None:
        """Time at which the job was accepted or last resumed."""
        return self._time(self.fields, "startTime")

    @property
    def config(self) -> dict[str, Any] | None:
        """Members of the model's config.json, once a trainer has reported them."""
        text = (self.fields.get("model") or {}).get("config")
        return None if text is None else dict(json.loads(text))

    @property
    def trace(self) -> MemoryTrace | None:
        """The traced memory of the model; None before a trainer reports it, or if another version wrote it."""
        text = (self.fields.get("model") or {}).get("trace")
        try:
            return None if text is None else MemoryTrace.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def trace_problem(self) -> str:
        """Why PREPARE could not trace the model; empty if nothing is known."""
        return str((self.fields.get("model") or {}).get("traceProblem", ""))

    @property
    def dataset(self) -> Mapping[str, Any] | None:
        """The dataset report, once PREPARE has delivered it."""
        return self.fields.get("dataset")

    @property
    def longest_example(self) -> int | None:
        """Tokens of the longest row, once PREPARE has reported it."""
        longest = (self.fields.get("dataset") or {}).get("longestExample")
        return None if longest is None else int(longest)

    @property
    def training_examples(self) -> int | None:
        """Number of training examples, once PREPARE has reported it."""
        examples = (self.fields.get("dataset") or {}).get("trainingExamples")
        return None if examples is None else int(examples)

    @property
    def plan(self) -> Mapping[str, Any]:
        """The recorded plan."""
        return self.fields.get("plan") or {}

    def speaks(self, minor: int, image: str) -> bool:
        """True if the trainer of `image` is known to speak version 1.`minor` of the contract, or a later one.

        It is known from PREPARE, if TRAIN runs the same image.
        """
        trainer = self.fields.get("trainer") or {}
        version = str(trainer.get("contractVersion", "1.0"))
        return trainer.get("image") == image and int(version.partition(".")[2]) >= minor

    @property
    def training_begun(self) -> bool:
        """True once a pod of TRAIN has had a node.

        The workspace may then hold a checkpoint, which binds later attempts to the same plan.
        """
        if self.stage is Stage.TRAIN and self.node_seen:
            return True
        attempts = self.fields.get("attempts") or ()
        return any(entry["stage"] == Stage.TRAIN and "node" in entry for entry in attempts)

    @property
    def waiting_since(self) -> datetime | None:
        """Start of the current wait for a GPU; None while the job does not wait."""
        return self._time(self.fields.get("waiting") or {}, "since")

    @property
    def waited(self) -> timedelta:
        """Time spent waiting for a GPU since the job started, including the current wait."""
        since = self.waiting_since
        past = timedelta(seconds=(self.fields.get("waiting") or {}).get("totalSeconds", 0))
        return past if since is None else past + max(self.now - since, timedelta())

    @property
    def spec_hash(self) -> str | None:
        """The recorded spec hash."""
        return self.fields.get("specHash")

    def find_attempt(self, stage: Stage, attempt: int) -> Mapping[str, Any] | None:
        """The record of an ended attempt; None if it is not recorded."""
        for entry in reversed(self.fields.get("attempts") or ()):
            if entry["stage"] == stage and entry["attempt"] == attempt:
                return dict(entry)
        return None

    @property
    def last_attempt(self) -> Mapping[str, Any] | None:
        """The record of the current stage's last ended attempt; None if it is not recorded."""
        entries = self.fields.get("attempts") or ()
        return next((entry for entry in reversed(entries) if entry["stage"] == self.stage), None)

    def count_attempts(self, stage: Stage, outcome: str) -> int:
        """Number of recorded attempts of `stage` with this outcome."""
        entries = self.fields.get("attempts") or ()
        return sum(entry["stage"] == stage and entry["outcome"] == outcome for entry in entries)

    def count_reason(self, stage: Stage, reason: str) -> int:
        """Number of recorded attempts of `stage` that ended for this reason."""
        entries = self.fields.get("attempts") or ()
        return sum(entry["stage"] == stage and entry.get("reason") == reason for entry in entries)

    @property
    def stuck_starts(self) -> int:
        """Number of recorded attempts of the current stage whose pod had a node but did not start."""
        return self.count_reason(self.stage, Reason.POD_STUCK)

    @property
    def interruptions(self) -> int:
        """Number of recorded attempts of the current stage that were disrupted.

        A pod that did not start is tried again by a rule of its own, and a suspension is what the user wants.
        """
        suspensions = self.count_reason(self.stage, Reason.SUSPENDED_BY_USER)
        return self.count_attempts(self.stage, "Interrupted") - self.stuck_starts - suspensions

    @property
    def awaits_start(self) -> bool:
        """True while the stage is tried again because the pod of its last attempt did not start."""
        return (self.last_attempt or {}).get("reason") == Reason.POD_STUCK

    @property
    def destination_failures(self) -> int:
        """Number of recorded attempts of the current stage, if it is MERGE, that ended for the destination."""
        if self.stage is not Stage.MERGE:
            return 0
        return sum(self.count_reason(self.stage, reason) for reason in DESTINATION_REASONS)

    @property
    def awaits_destination(self) -> bool:
        """True while MERGE is tried again because its last attempt ended for the destination."""
        last = self.last_attempt if self.stage is Stage.MERGE else None
        return last is not None and last.get("reason") in DESTINATION_REASONS

    @property
    def out_of_memory_kills(self) -> int:
        """Number of attempts of the current stage that the kernel killed for exceeding their host memory."""
        return self.count_reason(self.stage, Reason.HOST_OUT_OF_MEMORY)

    @property
    def _stored_stage(self) -> Mapping[str, Any]:
        return self.fields.get("stage") or {}

    @staticmethod
    def _time(fields: Mapping[str, Any], name: str) -> datetime | None:
        text = fields.get(name)
        return None if text is None else parse_time(text)
