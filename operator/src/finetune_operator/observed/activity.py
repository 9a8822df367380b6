"""What trainers have reported and which GPUs they hold, for the series of single jobs.

TRAIN's last numbers stay after its pod. Otherwise a scrape every 30 seconds would miss the end of each curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Progress
from finetune_operator.contract.training_report import TrainingReport

TRAINING = "Training"
"""The activity whose units are optimizer steps."""


@dataclass(frozen=True, slots=True)
class LastTraining:
    """The last known numbers of TRAIN, each from the last report that had it. None is unknown."""

    attempt: int
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None
    not_training: float | None = None
    """Share of the stage's time outside of steps, 0 to 1."""
    report: TrainingReport | None = None


def remember(last: LastTraining | None, progress: Progress) -> LastTraining | None:
    """The last numbers after a report. Another attempt of TRAIN begins anew, and another stage changes nothing."""
    if progress.stage is not Stage.TRAIN:
        return last
    if last is None or last.attempt != progress.attempt:
        last = LastTraining(progress.attempt)
    trains = progress.activity == TRAINING
    return LastTraining(
        attempt=progress.attempt,
        step=progress.step if trains else last.step,
        total_steps=progress.total_steps if trains else last.total_steps,
        loss=_newer(progress.loss, last.loss),
        learning_rate=_newer(progress.learning_rate, last.learning_rate),
        gradient_norm=_newer(progress.gradient_norm, last.gradient_norm),
        tokens_per_second=_newer(progress.tokens_per_second, last.tokens_per_second),
        not_training=_newer(_not_training(progress), last.not_training),
        report=progress.training or last.report,
    )


def _newer(new: float | None, old: float | None) -> float | None:
    return old if new is None else new


def _not_training(progress: Progress) -> float | None:
    seconds = (progress.heartbeat_time - progress.start_time).total_seconds()
    if progress.training is None or seconds <= 0:
        return None
    return min(1.0, max(0.0, 1.0 - progress.training.seconds / seconds))


@dataclass(frozen=True, slots=True)
class JobActivity:
    """What one FineTuneJob does apart from its status. None is unknown, or does not apply."""

    namespace: str
    name: str
    training: LastTraining | None = None
    heartbeat: datetime | None = None
    """The running trainer's last sign of progress, by its own clock."""
    estimated_completion: datetime | None = None
    """Expected end of the running trainer's present activity."""
    trains: bool = False
    """A trainer takes optimizer steps now, as far as is known."""
    gpu_pod_ended: datetime | None = None
    """Time since which a pod of TRAIN exists whose trainer has ended; the oldest one."""
