"""The series of time, cost and showback of single FineTuneJobs, as text.

Only allowed labels of a job become labels of a series, so their number is bounded by that of the jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from finetune_operator.api.showback import metric_label, showback_labels
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.families import Family, escape, number

_JOB = ("name", "namespace")
SHOWBACK_FAMILIES = {
    "finetunejob_labels": Family("Labels of the FineTuneJob that cost.labels of the chart allows.")
}
"""It also has one label for each allowed key."""
FAMILIES = {
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
"""All families of time and cost, with the labels of the text."""
_BOUNDS = {"low": "lowSeconds", "expected": "expectedSeconds", "high": "highSeconds"}


def showback_lines(job: JobRecord, labels: str, allowed: Collection[str]) -> list[str]:
    """The line of each family of `SHOWBACK_FAMILIES`. `labels` are those of the job, and `allowed` keys are shown."""
    carried = showback_labels(job.labels, allowed)
    more = ",".join(f'{metric_label(key)}="{escape(value)}"' for key, value in carried.items())
    return [f"finetunejob_labels{{{labels},{more}}} 1.0\n" if more else ""]


def cost_lines(job: JobRecord, labels: str) -> list[str]:
    """The lines of each family of `FAMILIES`, in its order. `labels` are those of the job.

    Raises AttributeError, KeyError, TypeError or ValueError if another version has written what cannot be read.
    """
    found = dict.fromkeys(FAMILIES, "")
    for name, extra, value in (*_estimates(job), *_usage(job.status.get("usage") or {})):
        found[name] += f"{name}{{{labels}{extra}}} {number(value)}\n"
    return [*found.values()]


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
