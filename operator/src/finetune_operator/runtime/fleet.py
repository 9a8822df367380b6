"""Counters and histograms of all FineTuneJobs together. They outlive the jobs, so their rates and quantiles stay right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import OPERATOR_CLASSES, TRAINER_CLASSES, Reason, ReasonClass
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.state_series import OTHER, REASONS
from finetune_operator.runtime.usage_metrics import UsageMetrics

_FINAL = (ReasonClass.PERMANENT, ReasonClass.RETRYABLE)
_FAILURES = sorted(
    {
        OTHER,
        *(reason.value for reason, kind in OPERATOR_CLASSES.items() if kind in _FINAL),
        *(reason for reason, kind in TRAINER_CLASSES.items() if kind in _FINAL),
    }
)
"""The reasons with which a job can fail."""
_OUTCOMES = ("Succeeded", "Failed", "Interrupted")
_BUCKETS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 115200, 230400, 604800)
"""From seconds to a week."""
_PULL_BUCKETS = (1, 5, 10, 30, 60, 120, 180, 300, 450, 600, 900, 1800, 3600)
"""From an image in a near cache to gigabytes over a slow line."""


class FleetMetrics:
    """Counts what happens to jobs while this replica leads. It never sees the same change twice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register all series with `registry`."""
        self._usage = UsageMetrics(registry)
        self._ended = Counter(
            "finetunejobs_ended",
            "FineTuneJobs that have ended, by their last reason.",
            ["outcome", "reason"],
            registry=registry,
        )
        self._attempts = Counter(
            "finetunejob_stage_attempts", "Attempts that have ended.", ["stage", "outcome"], registry=registry
        )
        self._attempt_seconds = Histogram(
            "finetunejob_stage_attempt_duration_seconds",
            "Time from the start of an attempt's Job to its end.",
            ["stage", "outcome"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._job_seconds = Histogram(
            "finetunejob_duration_seconds",
            "Time from the creation of a FineTuneJob to its end.",
            ["outcome"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._gpu_wait_seconds = Histogram(
            "finetunejob_gpu_wait_seconds",
            "Time for which a FineTuneJob that has ended had waited for a GPU or a queue.",
            registry=registry,
            buckets=(1, *_BUCKETS),
        )
        self._pull_seconds = Histogram(
            "finetunejob_image_pull_seconds",
            "Time for which an attempt's pod waited for the trainer's image, if its node had to pull it.",
            ["stage"],
            registry=registry,
            buckets=_PULL_BUCKETS,
        )
        self._ended.labels("Succeeded", Reason.COMPLETED.value)
        # Otherwise `increase` would miss the first failure for a reason, because its series would begin with 1.
        for reason in _FAILURES:
            self._ended.labels("Failed", reason)
        for outcome in _OUTCOMES[:2]:
            self._job_seconds.labels(outcome)
        for stage in WORK_STAGES:
            self._pull_seconds.labels(stage.value)
            for outcome in _OUTCOMES:
                self._attempts.labels(stage.value, outcome)
                self._attempt_seconds.labels(stage.value, outcome)

    def changed(self, old: JobRecord, new: JobRecord) -> None:
        """A FineTuneJob has changed from `old` to `new`. What another version wrote and cannot be read is not counted."""
        if old.status == new.status:
            return
        self._usage.changed(old, new)
        try:
            self._count(old, new)
        except (AttributeError, KeyError, TypeError, ValueError):
            return

    def _count(self, old: JobRecord, new: JobRecord) -> None:
        before = {_identity(attempt) for attempt in old.status.get("attempts") or ()}
        for attempt in new.status.get("attempts") or ():
            if _identity(attempt) not in before:
                self._count_attempt(attempt)
        end = new.status.get("completionTime")
        if end is None or "completionTime" in old.status:
            return
        succeeded = find_condition(new.status, Condition.SUCCEEDED)
        outcome = "Succeeded" if succeeded["status"] == "True" else "Failed"
        reason = succeeded["reason"]
        self._ended.labels(outcome, reason if reason in REASONS else OTHER).inc()
        self._job_seconds.labels(outcome).observe((parse_time(end) - new.created).total_seconds())
        self._gpu_wait_seconds.observe((new.status.get("waiting") or {}).get("totalSeconds", 0))

    def _count_attempt(self, attempt: Mapping[str, Any]) -> None:
        stage, outcome = Stage(attempt["stage"]).value, attempt["outcome"]
        if outcome not in _OUTCOMES:
            return
        self._attempts.labels(stage, outcome).inc()
        if "startTime" in attempt and "completionTime" in attempt:
            seconds = parse_time(attempt["completionTime"]) - parse_time(attempt["startTime"])
            self._attempt_seconds.labels(stage, outcome).observe(seconds.total_seconds())
        if attempt.get("imagePullSeconds", 0) > 0:
            self._pull_seconds.labels(stage).observe(attempt["imagePullSeconds"])


def _identity(attempt: Mapping[str, Any]) -> tuple[str, int, str]:
    return (attempt["stage"], attempt["attempt"], attempt.get("completionTime", ""))
