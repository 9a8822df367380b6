"""The series of single FineTuneJobs, as text. Only jobs that run or have just ended have any, so their number is bounded.

The lines of a job are kept until its object changes. A scrape then joins them, because to format the series of 10,000
jobs takes seconds. It runs in a thread of its own, which reads nothing but the records that it gets.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import OPERATOR_CLASSES, ReasonClass
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.settled import StoredJob, unpacked
from finetune_operator.runtime.families import Family, escape, head, identity, number
from finetune_operator.runtime.state_series import FAMILIES as STATE_FAMILIES
from finetune_operator.runtime.state_series import state_lines

_HELP = {
    "finetunejob_info": "1 for every FineTuneJob that runs or has just ended.",
    "finetunejob_status_condition": "1 for the present status of a condition, 0 for its other statuses.",
    "finetunejob_created_timestamp_seconds": "Time at which the FineTuneJob was created.",
    "finetunejob_start_timestamp_seconds": "Time at which it was accepted or last resumed.",
    "finetunejob_completion_timestamp_seconds": "Time at which it ended.",
    "finetunejob_progress_ratio": "Completed fraction of the current activity, 0 to 1.",
    "finetunejob_train_loss": "Last reported training loss, in nats per supervised token.",
    "finetunejob_base_loss": "Validation loss before training, in nats per supervised token.",
    "finetunejob_tuned_loss": "Validation loss after training, in nats per supervised token.",
    "finetunejob_attempts": "Number of attempts that have ended, at most 20.",
    "finetunejob_requested_gpus": "GPUs that TRAIN requests.",
    "finetunejob_memory_estimated_bytes": "Estimated peak of the GPU memory that TRAIN allocates.",
    "finetunejob_memory_measured_bytes": "Peak of the GPU memory that TRAIN allocated, measured by its last attempt.",
    "finetunejob_memory_ratio": "Measured GPU memory divided by the estimate.",
}
"""Every family of single jobs, all of them gauges, with the labels `namespace` and `name`."""
_GAUGES = tuple(_HELP)[2:]
_ALL_HELP = _HELP | {name: family.help for name, family in STATE_FAMILIES.items()}
"""Families with one number a job, if the job has it."""
_STALLED_HELP = "FineTuneJobs that no GPU or volume of the cluster suits."
_LOSSES = ("finetunejob_train_loss", "finetunejob_base_loss", "finetunejob_tuned_loss")
_STALLED_REASONS = [reason.value for reason, kind in OPERATOR_CLASSES.items() if kind is ReasonClass.STALLED]


_JOINED = 1000
"""Jobs whose lines are joined at once, which takes about a millisecond. No other thread runs while bytes are copied.

With fewer of them, a scrape beside a busy event loop would often wait for its turn.
"""
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Lines:
    """What one job adds to a scrape."""

    version: str
    families: tuple[bytes, ...]
    """The lines of each family of `_ALL_HELP`, in its order."""
    stalled: str
    """The reason for which the job is stalled; empty if it is not."""


def families() -> dict[str, Family]:
    """All families, for the catalogue of metrics."""
    own = Family("").labels
    labels = {
        "finetunejob_info": (*own, "model", "phase"),
        "finetunejob_status_condition": (*own, "status", "type"),
    }
    units = dict.fromkeys(_LOSSES, "nats per token") | {
        name: unit
        for name in _GAUGES
        for part, unit in (("timestamp_seconds", "Unix time"), ("bytes", "bytes"))
        if name.endswith(part)
    }
    found = {name: Family(text, units.get(name, ""), labels.get(name, own)) for name, text in _HELP.items()}
    return found | STATE_FAMILIES | {"finetunejobs_stalled": Family(_STALLED_HELP, "count", ("reason",))}


class JobSeries:
    """Renders the series of jobs. Use it from one thread at a time."""

    def __init__(self) -> None:
        self._lines: dict[str, _Lines] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def changed(self, jobs: Collection[StoredJob]) -> list[StoredJob]:
        """Those of the jobs whose lines are not kept."""
        return [job for job in jobs if self._kept(job) is None]

    def lines(self, jobs: Collection[StoredJob]) -> list[_Lines]:
        """Make the lines of these jobs, or take those that are kept, and keep them."""
        found = []
        for job in jobs:
            lines = self._kept(job)
            if lines is None:
                lines = self._lines[job.uid] = _format(unpacked(job))
            found.append(lines)
        return found

    def forget_others(self, jobs: Collection[StoredJob]) -> None:
        """Keep no lines but those of these jobs."""
        self._lines = {job.uid: self._lines[job.uid] for job in jobs if job.uid in self._lines}

    def render(self, jobs: Collection[StoredJob]) -> Iterator[bytes]:
        """All families of these jobs in the text format, which is that of OpenMetrics, too, in parts."""
        lines = self.lines(jobs)
        for place, (name, text) in enumerate(_ALL_HELP.items()):
            yield head(name, text)
            for start in range(0, len(lines), _JOINED):
                yield b"".join([each.families[place] for each in lines[start : start + _JOINED]])
        stalled = Counts(each.stalled for each in lines)
        yield head("finetunejobs_stalled", _STALLED_HELP)
        counts = [
            f'finetunejobs_stalled{{reason="{reason}"}} {stalled[reason]}.0\n' for reason in _STALLED_REASONS
        ]
        yield "".join(counts).encode()

    def _kept(self, job: StoredJob) -> _Lines | None:
        held = self._lines.get(job.uid)
        return held if held is not None and held.version == job.resource_version else None


def _format(job: JobRecord) -> _Lines:
    own = identity(job.name, job.namespace)
    nothing: dict[str, float] = {}
    values = _readable(lambda: _values(job), nothing)
    families = [
        _info(job, own),
        _readable(lambda: _conditions(job.status, own), ""),
    ]
    labels = "{" + own + "} "
    families += [name + labels + number(values[name]) + "\n" if name in values else "" for name in _GAUGES]
    families += _readable(lambda: state_lines(job, own), [""] * len(STATE_FAMILIES))
    return _Lines(
        job.resource_version,
        tuple([family.encode("utf-8", "replace") for family in families]),
        _readable(lambda: _stalled_reason(job.status), ""),
    )


def _info(job: JobRecord, own: str) -> str:
    model, phase = escape(_readable(lambda: _model_name(job.spec), "")), escape(job.phase)
    return f'finetunejob_info{{{own},model="{model}",phase="{phase}"}} 1.0\n'


def _conditions(status: Mapping[str, Any], own: str) -> str:
    head = f"finetunejob_status_condition{{{own}"
    return "".join(
        [
            head + tail
            for entry in status.get("conditions") or ()
            for tail in _tails(entry["type"], entry["status"])
        ]
    )


@lru_cache(maxsize=64)
def _tails(kind: str, status: str) -> tuple[str, ...]:
    """The ends of the lines of one condition, which are the same for all jobs."""
    return tuple(
        f',status="{truth.value}",type="{escape(kind)}"}} {1.0 if status == truth else 0.0}\n'
        for truth in Truth
    )


def _stalled_reason(status: Mapping[str, Any]) -> str:
    if find_condition(status, Condition.SUCCEEDED).get("status") != Truth.UNKNOWN:
        return ""
    stalled = find_condition(status, Condition.STALLED)
    return str(stalled.get("reason", "")) if stalled.get("status") == Truth.TRUE else ""


def _readable(read: Callable[[], Value], otherwise: Value) -> Value:
    """What `read` finds in a job; `otherwise` if another version wrote what this one cannot read."""
    try:
        return read()
    except (AttributeError, KeyError, TypeError, ValueError):
        return otherwise


def _values(job: JobRecord) -> dict[str, float]:
    """The gauges that have a value for this job."""
    status = job.status
    progress, evaluation = status.get("progress") or {}, status.get("evaluation") or {}
    values: dict[str, float] = {
        "finetunejob_created_timestamp_seconds": job.created.timestamp(),
        "finetunejob_attempts": float(len(status.get("attempts") or ())),
        "finetunejob_requested_gpus": float((job.spec.get("resources") or {}).get("gpus", 1)),
    }
    for name, field in (
        ("finetunejob_start_timestamp_seconds", "startTime"),
        ("finetunejob_completion_timestamp_seconds", "completionTime"),
    ):
        if field in status:
            values[name] = parse_time(status[field]).timestamp()
    if "percent" in progress:
        values["finetunejob_progress_ratio"] = float(progress["percent"].rstrip("%")) / 100
    values |= _memory(status)
    for name, source, field in (
        ("finetunejob_train_loss", progress, "loss"),
        ("finetunejob_base_loss", evaluation, "baseLoss"),
        ("finetunejob_tuned_loss", evaluation, "tunedLoss"),
    ):
        if field in source:
            values[name] = float(source[field])
    return values


def _memory(status: Mapping[str, Any]) -> dict[str, float]:
    """Estimated and measured GPU memory, if they are known."""
    values: dict[str, float] = {}
    plan = status.get("plan") or {}
    if "memory" in plan:
        values["finetunejob_memory_estimated_bytes"] = float(plan["memory"]["peakBytes"])
    for attempt in reversed(status.get("attempts") or ()):
        memory = attempt.get("memory") or {}
        if "allocatedBytes" in memory:
            values["finetunejob_memory_measured_bytes"] = float(memory["allocatedBytes"])
            if memory.get("estimatedBytes"):
                values["finetunejob_memory_ratio"] = memory["allocatedBytes"] / memory["estimatedBytes"]
            break
    return values


def _model_name(spec: Mapping[str, Any]) -> str:
    source = (spec.get("model") or {}).get("source") or {}
    hub, claim = source.get("huggingFace") or {}, source.get("persistentVolumeClaim") or {}
    return str(hub.get("repository") or claim.get("path") or claim.get("claimName") or "")
