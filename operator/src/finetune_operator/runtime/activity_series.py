"""The series of what trainers report: curves of running jobs, and their last points after the end.

A trainer chooses its numbers, and a tenant chooses the trainer. Every number is bounded by the contract, and no text of a
trainer becomes a label.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.contract.training_report import TrainingReport
from finetune_operator.observed.activity import JobActivity, LastTraining
from finetune_operator.observed.observation import Key
from finetune_operator.runtime.families import Family, identity, number
from finetune_operator.runtime.kept_lines import KeptLines, Lines

_KIND = ("name", "namespace", "kind")
_RANK = ("name", "namespace", "rank")
_LOSS = "nats per token"
FAMILIES = {
    "finetunejob_train_step": Family("Optimizer steps that are done.", "steps"),
    "finetunejob_train_steps_planned": Family("Optimizer steps of the whole training.", "steps"),
    "finetunejob_step_loss": Family("Training loss of the last step, per supervised token.", _LOSS),
    "finetunejob_learning_rate": Family("Learning rate of the last step."),
    "finetunejob_gradient_norm": Family("Norm of the last step's gradient, before it is clipped."),
    "finetunejob_tokens_per_second": Family("Mean speed of training, without padding.", "tokens per second"),
    "finetunejob_not_training_ratio": Family(
        "Share of TRAIN's time that was spent outside of training steps.", "0 to 1"
    ),
    "finetunejob_trained_tokens": Family("Tokens of this attempt's steps, without padding.", "tokens"),
    "finetunejob_step_duration_seconds": Family("Duration of the last step, without pauses.", "seconds"),
    "finetunejob_evaluation_loss": Family("Last loss on held-out rows, per supervised token.", _LOSS),
    "finetunejob_router_aux_loss": Family(
        "Load-balancing loss of the last step's routers, before its coefficient; only with routerAuxLossCoefficient."
    ),
    "finetunejob_last_checkpoint_timestamp_seconds": Family(
        "Time of the newest checkpoint, or the begin of the training; only while TRAIN takes steps.",
        "Unix time",
    ),
    "finetunejob_gpu_memory_bytes": Family("GPU memory of torch's allocator, by kind.", "bytes", _KIND),
    "finetunejob_rank_step_duration_seconds": Family(
        "Time that each of several ranks needed for its own passes of a step, without its wait for the others.",
        "seconds",
        _RANK,
    ),
    "finetunejob_rank_gpu_memory_peak_bytes": Family(
        "Largest GPU memory that the tensors of each of several ranks took so far.", "bytes", _RANK
    ),
    "finetunejob_rank_host_memory_peak_bytes": Family(
        "Largest resident memory of the process of each of several ranks so far.", "bytes", _RANK
    ),
    "finetunejob_heartbeat_timestamp_seconds": Family(
        "Time of the running trainer's last sign of progress.", "Unix time"
    ),
    "finetunejob_estimated_completion_timestamp_seconds": Family(
        "Expected end of the running activity.", "Unix time"
    ),
    "finetunejob_gpu_pod_ended_timestamp_seconds": Family(
        "Time at which the trainer of a pod of TRAIN ended, while the pod still exists.", "Unix time"
    ),
}
"""All families, with the labels `namespace` and `name`, one of them with `kind`, and three with `rank`."""

MEMORY_KINDS = {
    "Allocated": "allocated_bytes",
    "AllocatedPeak": "peak_allocated_bytes",
    "Reserved": "reserved_bytes",
    "ReservedPeak": "peak_reserved_bytes",
}
RANKS = {
    "finetunejob_rank_step_duration_seconds": "rank_seconds",
    "finetunejob_rank_gpu_memory_peak_bytes": "rank_device_bytes",
    "finetunejob_rank_host_memory_peak_bytes": "rank_host_bytes",
}
"""Families with a series for each rank, of which the contract allows 64, and their members. One process alone has none."""


class ActivitySeries(KeptLines[JobActivity]):
    """Renders the series of activities. The lines of one are kept until it changes."""

    def __init__(self) -> None:
        super().__init__({name: family.help for name, family in FAMILIES.items()})

    def _identify(self, item: JobActivity) -> tuple[Key, JobActivity]:
        return (item.namespace, item.name), item

    def _make(self, item: JobActivity) -> Lines:
        found = _format(item)
        return Lines(tuple([found.get(name, "").encode() for name in FAMILIES]))


def _format(activity: JobActivity) -> dict[str, str]:
    labels = identity(activity.name, activity.namespace)
    found: dict[str, str] = {}
    for name, value in _values(activity):
        if value is not None:
            found[name] = f"{name}{{{labels}}} {number(value)}\n"
    report = None if activity.training is None else activity.training.report
    if report is not None:
        lines = [
            f'finetunejob_gpu_memory_bytes{{{labels},kind="{kind}"}} {number(size)}\n'
            for kind, member in MEMORY_KINDS.items()
            if (size := getattr(report, member)) is not None
        ]
        found["finetunejob_gpu_memory_bytes"] = "".join(lines)
        for name, member in RANKS.items():
            values = getattr(report, member) or ()
            found[name] = "".join(
                [f'{name}{{{labels},rank="{rank}"}} {number(value)}\n' for rank, value in enumerate(values)]
            )
    return found


def _values(activity: JobActivity) -> Iterator[tuple[str, float | None]]:
    for name, moment in (
        ("finetunejob_heartbeat_timestamp_seconds", activity.heartbeat),
        ("finetunejob_estimated_completion_timestamp_seconds", activity.estimated_completion),
        ("finetunejob_gpu_pod_ended_timestamp_seconds", activity.gpu_pod_ended),
    ):
        yield name, None if moment is None else moment.timestamp()
    if activity.training is not None:
        yield from _training(activity.training)
        if activity.training.report is not None:
            yield from _report(activity.training.report, trains=activity.trains)


def _training(last: LastTraining) -> Iterator[tuple[str, float | None]]:
    yield "finetunejob_train_step", last.step
    yield "finetunejob_train_steps_planned", last.total_steps
    yield "finetunejob_step_loss", last.loss
    yield "finetunejob_learning_rate", last.learning_rate
    yield "finetunejob_gradient_norm", last.gradient_norm
    yield "finetunejob_tokens_per_second", last.tokens_per_second
    yield "finetunejob_not_training_ratio", last.not_training


def _report(report: TrainingReport, *, trains: bool) -> Iterator[tuple[str, float | None]]:
    yield "finetunejob_trained_tokens", report.tokens
    yield "finetunejob_step_duration_seconds", report.step_seconds
    yield "finetunejob_evaluation_loss", report.evaluation_loss
    yield "finetunejob_router_aux_loss", report.router_aux_loss
    saved = report.checkpoint_time if trains else None
    yield (
        "finetunejob_last_checkpoint_timestamp_seconds",
        None if saved is None else saved.timestamp(),
    )
