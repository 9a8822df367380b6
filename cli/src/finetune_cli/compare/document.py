"""Two jobs side by side as one document (contract/cli.schema.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from finetune_cli.compare.significance import comparisons, obstacle
from finetune_cli.jobs.cost import gpu_hours
from finetune_cli.jobs.summary import summary
from finetune_cli.jobs.timeline import STAGES, stage_seconds

Job = Mapping[str, Any]
_DATASET = (
    "digest", "rows", "kept", "duplicates", "trainingExamples", "validationExamples", "supervisedTokens", "longestExample",
    "shortened", "nearDuplicates", "leaked",
)  # fmt: skip
_EVALUATION = ("verdict", "rows", "baseLoss", "tunedLoss", "difference", "interval")


def document(first: Job, second: Job, now: datetime) -> dict[str, Any]:
    """Return the comparison. Members of `spec`, `dataset` and `plan` that are equal are left out."""
    one, two = first.get("status") or {}, second.get("status") or {}
    found = obstacle(first, second)
    return {
        "jobs": [summary(first), summary(second)],
        "spec": list(_differences(_flat(first["spec"]), _flat(second["spec"]))),
        "dataset": list(
            _differences(_chosen(one.get("dataset"), _DATASET), _chosen(two.get("dataset"), _DATASET))
        ),
        "plan": list(_differences(_plan(one), _plan(two))),
        "evaluations": [_chosen(status.get("evaluation"), _EVALUATION) or None for status in (one, two)],
        "obstacle": found,
        "measures": [asdict(item) for item in comparisons(one["evaluation"], two["evaluation"])]
        if found is None
        else [],
        "times": [_times(first, now), _times(second, now)],
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in sorted(first.keys() | second.keys()):
        if first.get(path) != second.get(path):
            yield {"path": path, "first": first.get(path), "second": second.get(path)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted path. A list is a leaf."""
    leaves: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{prefix}{name}"
        if isinstance(inner, Mapping) and inner:
            leaves |= _flat(inner, f"{path}.")
        else:
            leaves[path] = inner
    return leaves


def _chosen(values: Mapping[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values} if values else {}


def _plan(status: Mapping[str, Any]) -> dict[str, Any]:
    plan = status.get("plan") or {}
    found = dict(plan.get("training") or {})
    found |= {"gpu": plan["gpu"].get("product")} if plan.get("gpu") else {}
    found |= {"deviceBytes": plan["memory"].get("deviceBytes")} if plan.get("memory") else {}
    return found


def _times(job: Job, now: datetime) -> dict[str, Any]:
    seconds = {stage: stage_seconds(job, stage, now) for stage in STAGES}
    return {
        **{
            f"{stage[0].lower()}{stage[1:]}Seconds": None if value is None else round(value)
            for stage, value in seconds.items()
        },
        "gpuHours": gpu_hours(job),
    }
