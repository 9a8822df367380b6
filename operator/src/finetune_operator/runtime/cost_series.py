"""The series of time, cost and showback of single FineTuneJobs, as text.

The lines of a job are kept until its object changes. Only allowed labels of a job become labels of a series, so their number
is bounded by that of the jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import InvalidOperation
from typing import Any

from finetune_operator.api.showback import metric_label, showback_labels
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.settled import StoredJob, unpacked
from finetune_operator.runtime.families import Family, escape, head, identity, number

_JOB = ("name", "namespace")
FAMILIES = {
    "finetunejob_labels": Family("Labels of the FineTuneJob that cost.labels of the chart allows."),
    "finetunejob_estimated_gpu_seconds": Family(
        "Estimated GPU time of TRAIN before it starts.", "seconds", (*_JOB, "bound")
    ),
    "finetunejob_estimated_cost": Family(
        "Estimated cost of TRAIN before it starts.", "currency", (*_JOB, "bound", "currency")
    ),
    "finetunejob_used_gpu_seconds": Family("GPU time of the attempts of TRAIN that have ended.", "seconds"),
    "finetunejob_wasted_gpu_seconds": Family(
        "Part of the used GPU time in attempts that did not succeed.", "seconds"
    ),
    "finetunejob_cost": Family("Cost of the used GPU time.", "currency", (*_JOB, "currency")),
    "finetunejob_wasted_cost": Family("Cost of the wasted GPU time.", "currency", (*_JOB, "currency")),
}
"""All families, with the labels of the text. `finetunejob_labels` also has one label for each allowed key."""
_BOUNDS = {"low": "lowSeconds", "expected": "expectedSeconds", "high": "highSeconds"}


class CostSeries:
    """Renders the series of jobs. Use it from one thread at a time."""

    def __init__(self, allowed_labels: Collection[str] = ()) -> None:
        """`allowed_labels` are the keys of labels for showback."""
        self._allowed = tuple(allowed_labels)
        self._lines: dict[str, tuple[str, dict[str, str]]] = {}

    def keep(self, jobs: Collection[StoredJob]) -> None:
        """Make the lines of these jobs ahead of a scrape."""
        self._lines |= {job.uid: (job.resource_version, self._lines_of(job)) for job in jobs}

    def render(self, jobs: Collection[StoredJob]) -> list[bytes]:
        """All families of these jobs in the text format, which is that of OpenMetrics, too."""
        self._lines = {job.uid: (job.resource_version, self._lines_of(job)) for job in jobs}
        found = []
        for name, family in FAMILIES.items():
            found.append(head(name, family.help))
            lines = [lines[name] for _, lines in self._lines.values() if name in lines]
            found.append("".join(lines).encode("utf-8", "replace"))
        return found

    def _lines_of(self, job: StoredJob) -> dict[str, str]:
        held = self._lines.get(job.uid)
        if held is not None and held[0] == job.resource_version:
            return held[1]
        return self._format(unpacked(job))

    def _format(self, job: JobRecord) -> dict[str, str]:
        labels = identity(job.name, job.namespace)
        found: dict[str, str] = {}
        carried = showback_labels(job.labels, self._allowed)
        if carried:
            more = ",".join(f'{metric_label(key)}="{escape(value)}"' for key, value in carried.items())
            found["finetunejob_labels"] = f"finetunejob_labels{{{labels},{more}}} 1.0\n"
        for name, extra, value in _readable(job):
            line = f"{name}{{{labels}{extra}}} {number(value)}\n"
            found[name] = found.get(name, "") + line
        return found


def _readable(job: JobRecord) -> list[tuple[str, str, float]]:
    """The values of a job; none if another version wrote what this one cannot read."""
    try:
        return [*_estimates(job), *_usage(job.status.get("usage") or {})]
    except (AttributeError, KeyError, TypeError, ValueError, InvalidOperation):
        return []


def _estimates(job: JobRecord) -> Iterator[tuple[str, str, float]]:
    plan = job.status.get("plan") or {}
    duration, cost = plan.get("duration") or {}, plan.get("cost") or {}
    gpus = int((job.spec.get("resources") or {}).get("gpus", 1))
    for bound, member in _BOUNDS.items():
        if member in duration:
            yield "finetunejob_estimated_gpu_seconds", f',bound="{bound}"', float(duration[member]) * gpus
        if bound in cost:
            labels = f',bound="{bound}",currency="{escape(str(cost["currency"]))}"'
            yield "finetunejob_estimated_cost", labels, float(cost[bound])


def _usage(usage: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for name, member in (
        ("finetunejob_used_gpu_seconds", "gpuSeconds"),
        ("finetunejob_wasted_gpu_seconds", "wastedGpuSeconds"),
    ):
        if member in usage:
            yield name, "", float(usage[member])
    cost = usage.get("cost")
    if cost:
        labels = f',currency="{escape(str(cost["currency"]))}"'
        yield "finetunejob_cost", labels, float(cost["amount"])
        yield "finetunejob_wasted_cost", labels, float(cost["wasted"])
