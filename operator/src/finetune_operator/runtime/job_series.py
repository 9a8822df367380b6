"""The series of single FineTuneJobs, as text. Only jobs that run or have just ended have any, so their number is bounded.

A scrape runs in a thread of its own, which reads nothing but the records that it gets.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.formats import parse_time
from finetune_operator.api.reasons import OPERATOR_CLASSES, ReasonClass
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.packed import StoredJob, unpacked
from finetune_operator.runtime.cost_series import FAMILIES as COST_FAMILIES
from finetune_operator.runtime.cost_series import SHOWBACK_FAMILIES, cost_lines, showback_lines
from finetune_operator.runtime.families import Family, escape, head, identity, number
from finetune_operator.runtime.kept_lines import KeptLines, Lines
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
"""Families with one number a job, if the job has it."""
_OTHER_FAMILIES = STATE_FAMILIES | SHOWBACK_FAMILIES | COST_FAMILIES
_ALL_HELP = _HELP | {name: family.help for name, family in _OTHER_FAMILIES.items()}
_STALLED_HELP = "FineTuneJobs that no GPU or volume of the cluster suits."
_LOSSES = ("finetunejob_train_loss", "finetunejob_base_loss", "finetunejob_tuned_loss")
_STALLED_REASONS = [reason.value for reason, kind in OPERATOR_CLASSES.items() if kind is ReasonClass.STALLED]
Value = TypeVar("Value")


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
    return found | _OTHER_FAMILIES | {"finetunejobs_stalled": Family(_STALLED_HELP, "count", ("reason",))}


class JobSeries(KeptLines[StoredJob]):
    """Renders the series of jobs. The lines of one are kept until its object changes."""

    def __init__(self, allowed_labels: Collection[str] = ()) -> None:
        """`allowed_labels` are the keys of labels for showback."""
        super().__init__(_ALL_HELP)
        self._allowed = tuple(allowed_labels)

    def render(self, items: Collection[StoredJob]) -> Iterator[bytes]:
        """All families of these jobs, and the number of stalled ones by reason."""
        yield from super().render(items)
        yield head("finetunejobs_stalled", _STALLED_HELP)
        stalled = Counts(each.note for each in self.lines(items))
        counts = [
            f'finetunejobs_stalled{{reason="{reason}"}} {stalled[reason]}.0\n' for reason in _STALLED_REASONS
        ]
        yield "".join(counts).encode()

    def _identify(self, item: StoredJob) -> tuple[str, str]:
        return item.uid, item.resource_version

    def _make(self, item: StoredJob) -> Lines:
        return _format(unpacked(item), self._allowed)


def _format(job: JobRecord, allowed_labels: Collection[str]) -> Lines:
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
    families += showback_lines(job, own, allowed_labels)
    families += _readable(lambda: cost_lines(job, own), [""] * len(COST_FAMILIES))
    return Lines(
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
