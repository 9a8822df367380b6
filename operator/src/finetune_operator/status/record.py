"""What a stored status tells."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.conditions import Condition, Conditions, Truth
from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import Stage
from finetune_operator.observed.observation import JobRecord


class StatusRecord:
    """Reads one status."""

    def __init__(self, job: JobRecord, now: datetime) -> None:
        self._job = job
        self._now = now
        self._fields: dict[str, Any] = copy.deepcopy(dict(job.status))
        self.conditions = Conditions(self._fields.get("conditions") or [], job.generation, now)

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
    def config(self) -> dict[str, Any] | None:
        """Members of the model's config.json, once a trainer has told them."""
        text = (self._fields.get("model") or {}).get("config")
        return None if text is None else dict(json.loads(text))

    @property
    def dataset(self) -> Mapping[str, Any] | None:
        """The dataset report, once PREPARE has told it."""
        return self._fields.get("dataset")

    @property
    def longest_example(self) -> int | None:
        """Tokens of the longest row, once PREPARE has told it."""
        longest = (self._fields.get("dataset") or {}).get("longestExample")
        return None if longest is None else int(longest)

    @property
    def plan(self) -> Mapping[str, Any]:
        """The recorded plan."""
        return self._fields.get("plan") or {}

    @property
    def training_begun(self) -> bool:
        """Whether a pod of TRAIN has had a node: a checkpoint may lie in the workspace, which binds later attempts."""
        if self.stage is Stage.TRAIN and "node" in self._stored_stage:
            return True
        attempts = self._fields.get("attempts") or ()
        return any(entry["stage"] == Stage.TRAIN and "node" in entry for entry in attempts)

    @property
    def waiting_since(self) -> datetime | None:
        """When the present wait for a GPU began; None while the job does not wait."""
        return self._time(self._fields.get("waiting") or {}, "since")

    @property
    def waited(self) -> timedelta:
        """Time spent waiting for a GPU since the job's clock started, the present wait included."""
        since = self.waiting_since
        past = timedelta(seconds=(self._fields.get("waiting") or {}).get("totalSeconds", 0))
        return past if since is None else past + max(self._now - since, timedelta())

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

    def count_reason(self, stage: Stage, reason: str) -> int:
        """How many recorded attempts of the stage ended for this reason."""
        entries = self._fields.get("attempts") or ()
        return sum(entry["stage"] == stage and entry.get("reason") == reason for entry in entries)

    @property
    def _stored_stage(self) -> Mapping[str, Any]:
        return self._fields.get("stage") or {}

    @staticmethod
    def _time(fields: Mapping[str, Any], name: str) -> datetime | None:
        text = fields.get(name)
        return None if text is None else parse_time(text)
