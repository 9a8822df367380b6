"""The report on a whole job as JSON: what every stage has left in the workspace, and what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.report.curve import DOCUMENT as CURVE
from finetune_trainer.report.evaluation_page import DOCUMENT as EVALUATION
from finetune_trainer.workspace.kept_logs import newest, read_excerpt, stored_logs
from finetune_trainer.workspace.layout import read_marker
from finetune_trainer.workspace.timeline import joined, read_timeline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

VERSION = "1.1"
DATASET = "dataset.json"
_STAGES = ("prepare", "train", "merge")
_WARNINGS = 20
_LOGS = 4
"""Logs of each stage and step in the report."""
_LOG_START, _LOG_END = 4 << 10, 16 << 10
"""Bytes of the beginning and the end of each log in the report."""


@dataclass(frozen=True)
class Failure:
    """A stage that did not succeed: `stage` and `reason` are those of the contract, `message` is redacted."""

    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class Parts:
    """What is known of a job. `results` has the members `prepare`, `train` and `merge` of the contract's results.

    The others are the documents of the same folder: the dataset report, the answers, the course of the training.
    """

    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dataset: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None
    curve: Mapping[str, Any] | None = None
    timeline: Sequence[Mapping[str, Any]] = ()
    failure: Failure | None = None
    logs: Sequence[Mapping[str, Any]] = ()


def read_parts(
    run: RunSpec,
    layout: WorkspaceLayout,
    failure: Failure | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> Parts:
    """Return what the workspace holds for this spec; a broken document counts as missing.

    `known` has results of stages without a marker here: a MERGE that has not ended, or what PREPARE found published.
    `attempts` are those that the operator has recorded, with ends that no trainer could record.
    """
    marked = {stage: read_marker(layout, stage, run.spec_hash) for stage in _STAGES}
    return Parts(
        results={
            **{stage: result for stage, result in marked.items() if result is not None},
            **(known or {}),
        },
        dataset=_document(layout.report / DATASET),
        answers=_document(layout.report / EVALUATION),
        curve=_document(layout.report / CURVE),
        timeline=joined(read_timeline(layout), attempts),
        failure=failure,
        logs=read_logs(layout),
    )


def read_logs(layout: WorkspaceLayout) -> list[dict[str, Any]]:
    """Return beginning and end of the newest logs; one that cannot be read is left out."""
    found = []
    for log in newest(stored_logs(layout.logs), _LOGS):
        try:
            excerpt = read_excerpt(log.path, _LOG_START, _LOG_END)
        except OSError:
            continue
        found.append(
            {
                "stage": log.stage,
                "step": log.step,
                "attempt": log.attempt,
                "bytes": excerpt.size,
                "first": excerpt.first,
                "last": excerpt.last,
                "leftOutBytes": excerpt.left_out,
            }
        )
    return found


def job_report(run: RunSpec, parts: Parts, base: str) -> dict[str, Any]:
    """Return the report as JSON. `base` is the name of the base model."""
    prepare, train, merge = (parts.results.get(stage) for stage in _STAGES)
    return {
        "version": VERSION,
        "job": {"namespace": run.job.namespace, "name": run.job.name},
        "specHash": run.spec_hash,
        "state": _state(parts),
        "failure": None
        if parts.failure is None
        else {"stage": parts.failure.stage, "reason": parts.failure.reason, "message": parts.failure.message},
        "base": {"name": base, **(_model(prepare["model"]) if prepare else {})},
        "dataset": _dataset(prepare, parts.dataset),
        "plan": _plan(run),
        "memoryEstimate": None
        if run.memory_estimate is None
        else run.memory_estimate.model_dump(by_alias=True),
        "training": None
        if train is None
        else {name: value for name, value in train.items() if name != "evaluation"},
        "curve": None
        if parts.curve is None
        else {name: parts.curve.get(name) for name in ("steps", "points", "heldOut")},
        "evaluation": None if train is None else train.get("evaluation"),
        "minimumRows": run.evaluation.minimum_rows,
        "gate": run.evaluation.gate,
        "samples": list((parts.answers or {}).get("samples") or ()),
        "merge": merge,
        "mergeOnto": run.output.merge_onto,
        "timeline": list(parts.timeline),
        "logs": list(parts.logs),
        "missing": _missing(run, parts),
    }


def _state(parts: Parts) -> str:
    """Return Failed or Interrupted after such an end, Succeeded if MERGE has a result, else Running."""
    if parts.failure is not None:
        return "Interrupted" if parts.failure.reason == "Interrupted" else "Failed"
    return "Succeeded" if "merge" in parts.results else "Running"


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    names = ("architecture", "parameters", "commit", "digest", "quantizedModules", "bytes")
    return {name: model.get(name) for name in names}


def _dataset(prepare: Mapping[str, Any] | None, report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return counts, warnings and an example; of a rejected dataset the counts and the refusal."""
    if prepare is not None:
        found = prepare["dataset"]
        names = (
            "digest", "rows", "kept", "duplicates", "rejected", "trainingExamples", "validationExamples",
            "supervisedTokens", "longestExample", "shortened", "format", "source", "validationSource", "example",
            "promptVariety", "nearDuplicates", "leaked",
        )  # fmt: skip
        return {
            **{name: found.get(name) for name in names},
            "warnings": [_warning(warning) for warning in (found.get("warnings") or ())[:_WARNINGS]],
            "refusal": None,
        }
    rows = (report or {}).get("dataset")
    if not isinstance(rows, dict) or report is None:
        return None
    return {
        **{name: rows.get(name) for name in ("rows", "kept", "duplicates", "rejected")},
        "source": (report.get("sources") or {}).get("training"),
        "warnings": [],
        "refusal": report.get("refusal"),
        "remedies": rows.get("remedies"),
    }


def _warning(warning: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return code and message. In contract 1.0 a warning is its message alone."""
    return {"code": None, "message": warning} if isinstance(warning, str) else dict(warning)


def _plan(run: RunSpec) -> dict[str, Any]:
    """Return the settings with which TRAIN runs or would run."""
    training = run.training.model_dump(mode="json", by_alias=True, exclude={"ladder"})
    return {**training, "device": run.device, "rungs": len(run.training.ladder or ())}


def _missing(run: RunSpec, parts: Parts) -> list[str]:
    """Return a sentence for each thing that a reader may look for and that is not known here."""
    found = []
    if run.memory_estimate is None:
        found.append(
            "The trainer got no estimate of the GPU's memory. In a cluster, `status.plan` may have one."
        )
    if run.device == "cpu":
        found.append("TRAIN ran on a CPU, so there are no peaks of GPU memory.")
    if "train" in parts.results and parts.curve is None:
        found.append("The workspace has no losses by step.")
    if "train" in parts.results and parts.answers is None:
        found.append("The workspace has no answers of base and tuned model.")
    if not parts.logs:
        found.append("The workspace has no logs.")
    if not parts.timeline:
        found.append("The workspace has no times of the stages.")
    else:
        found.append(
            "The timeline has the stages' own times. Waiting for nodes and images is in the job's Events."
        )
    return found


def _document(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
