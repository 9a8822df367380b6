"""Converts the trainer's reports into status fields, and decides when progress is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.formats import format_number, format_time, parse_time
from finetune_operator.api.plan import Choice, Layout, Parallelism, Plan, Rung
from finetune_operator.api.stages import Stage
from finetune_operator.contract.artifacts import Publication, TrackerRecord
from finetune_operator.contract.dataset_report import DatasetReport
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.contract.result import (
    AttentionReport,
    BatchingReport,
    EvaluationReport,
    KernelsReport,
    MemoryReport,
    MergeResult,
    ModelReport,
    Progress,
    SelectionReport,
    TrainResult,
    Verification,
)
from finetune_operator.contract.rung_text import rung_text
from finetune_operator.sizing.memory.terms import Estimate, Phase

MINIMUM_INTERVAL = timedelta(seconds=30)
"""A status is stored, and many clients watch it. Live curves come from the trainer's /metrics."""
MAXIMUM_TERMS = 64


def starting(stage: Stage, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Progress of a stage that has not reported yet. The last loss stays visible."""
    progress: dict[str, Any] = {
        "stage": stage.value,
        "activity": "Starting",
        "step": 0,
        "percent": "0%",
        "updateTime": format_time(now),
    }
    if "loss" in previous:
        progress["loss"] = previous["loss"]
    return progress


def finished(stage: Stage, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Progress of a job that has succeeded."""
    return {**starting(stage, previous, now), "activity": "Finished", "percent": "100%"}


def updated(previous: Mapping[str, Any], report: Progress, now: datetime) -> dict[str, Any]:
    """The progress to show after `report`, or `previous` if the report is not written yet.

    Whatever a trainer reports, it causes a write every 30 s at most. Only the first report of an attempt is shown at
    once.
    """
    due = next_update(previous, report)
    if due is None or now < due:
        return dict(previous)
    return _to_status(report, previous, now)


def next_update(previous: Mapping[str, Any], report: Progress) -> datetime | None:
    """The earliest time at which `report` may be written; None if it says nothing new."""
    update_time = previous.get("updateTime")
    shown = report.start_time if update_time is None else parse_time(update_time)
    if _without_time(_to_status(report, previous, shown)) == _without_time(previous):
        return None
    return shown if update_time is None or _is_placeholder(previous) else shown + MINIMUM_INTERVAL


def _is_placeholder(progress: Mapping[str, Any]) -> bool:
    """True for `starting`. No report has a percentage without its number of steps."""
    return "percent" in progress and "totalSteps" not in progress


def _to_status(report: Progress, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    ratio = report.ratio
    progress: dict[str, Any] = {
        "stage": report.stage.value,
        "activity": report.activity,
        "step": report.step,
        "updateTime": format_time(now),
    }
    if report.total_steps is not None:
        progress["totalSteps"] = report.total_steps
    if ratio is not None:
        progress["percent"] = f"{int(ratio * 100)}%"
    if report.loss is not None:
        progress["loss"] = format_number(report.loss)
    elif "loss" in previous:
        progress["loss"] = previous["loss"]
    if report.tokens_per_second is not None:
        progress["tokensPerSecond"] = format_number(report.tokens_per_second)
    if report.estimated_completion_time is not None:
        progress["estimatedCompletionTime"] = format_time(report.estimated_completion_time)
    return progress


def _without_time(progress: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in progress.items() if name != "updateTime"}


def dataset(report: DatasetReport) -> dict[str, Any]:
    """The dataset report for status. Numbers that are not counts become strings."""
    shown = report.model_dump(mode="json", by_alias=True, exclude_none=True)
    shown["rejected"] = [{"reason": reason, "rows": rows} for reason, rows in sorted(report.rejected.items())]
    for name in ("reasoningFraction", "promptVariety", "capacityRatio"):
        if name in shown:
            shown[name] = format_number(shown[name])
    for language in shown.get("languages", ()):
        language["fraction"] = format_number(language["fraction"])
    _format_warnings(shown)
    return shown


def read_dataset(shown: Mapping[str, Any]) -> DatasetReport | None:
    """Read the dataset report from status; None if another version has written one that this version cannot read."""
    try:
        rejected = {entry["reason"]: entry["rows"] for entry in shown.get("rejected") or ()}
        return DatasetReport.model_validate({"warnings": (), **shown, "rejected": rejected})
    except (ValidationError, KeyError, TypeError):
        return None


def config(members: Mapping[str, Any]) -> str:
    """The members of config.json for status.

    They are text, because the API server drops nulls, which have a meaning. Nothing but quotes is escaped, so that the
    127 members of the largest config, with names of 64 and texts of 64 characters, stay below the bound of the CRD.
    """
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def model(report: ModelReport) -> dict[str, Any]:
    """The quantized model for status."""
    shown = report.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"config", "trace"})
    if report.config is not None:
        shown["config"] = config(report.config)
    if report.trace is not None:
        shown["trace"] = trace(report.trace)
    return shown


def trace(report: MemoryTrace) -> str:
    """The traced memory for status: text like the config, which nobody applies or compares member by member."""
    return report.model_dump_json(by_alias=True, exclude_none=True)


def evaluation(report: EvaluationReport) -> dict[str, Any]:
    """The comparison of base and tuned model for status. Numbers that are not counts become strings."""
    shown = _strings(report.model_dump(mode="json", by_alias=True, exclude_none=True))
    for name in ("byRow", "tokenAccuracy"):
        if name in shown:
            shown[name] = _strings(shown[name])
    metrics = [_strings(metric) for metric in shown.pop("metrics")]
    return {**shown, **({"metrics": metrics} if metrics else {})}


def open_verdict(report: EvaluationReport) -> str:
    """What a clear verdict would need, as one sentence; empty if the verdict is clear or nothing is known."""
    if report.needed_rows is None:
        return ""
    return (
        f"{report.verdict} on {report.rows} validation rows: a clear verdict needs about {report.needed_rows} "
        "(evaluation.maximumRows, dataset.validation)"
    )


def _strings(members: dict[str, Any]) -> dict[str, Any]:
    """Format numbers that are not counts, alone or as a pair."""
    return {name: _string(value) for name, value in members.items()}


def _string(value: Any) -> Any:
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return [format_number(item) for item in value]
    return value


def publications(copies: Iterable[Publication]) -> list[dict[str, Any]]:
    """The destinations that hold all artifacts."""
    return [copy.model_dump(mode="json", by_alias=True, exclude_none=True) for copy in copies]


def published(result: MergeResult) -> str:
    """Say how many artifacts are at how many destinations, and where."""
    copies = result.publications or ()
    artifacts, places = len(result.artifacts), len(copies)
    count = f"{artifacts} artifact{'s' if artifacts != 1 else ''} at {places} destination{'s' if places != 1 else ''}"
    return f"{count}: " + ", ".join(f"{copy.name} ({copy.uri})" for copy in copies)


def tracking(records: Iterable[TrackerRecord]) -> list[dict[str, Any]]:
    """What the trackers have of the run. The messages are in the condition."""
    return [
        each.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"recorded", "message"})
        for each in records
    ]


def tracked(records: Iterable[TrackerRecord]) -> str:
    """Say for each tracker what it has, or why it has nothing."""
    return "; ".join(_tracked(each) for each in records)


def _tracked(record: TrackerRecord) -> str:
    if not record.recorded:
        return f"{record.kind}: {record.message or 'no record'}"
    named = [f"run {record.run}" if record.run else "", f"model {record.model}" if record.model else ""]
    return f"{record.kind}: " + "; ".join(filter(None, (", ".join(filter(None, named)), record.message)))


def verification(report: Verification) -> dict[str, Any]:
    """The comparison of the merged model for status. Numbers that are not counts become strings."""
    shown = report.model_dump(mode="json", by_alias=True, exclude_none=True)
    shown = {
        name: format_number(value) if isinstance(value, float) else value for name, value in shown.items()
    }
    _format_warnings(shown)
    return shown


def proof(report: Verification) -> str:
    """The proof of the merged model as one sentence; empty for a trainer before contract 1.4, which sends no verdict."""
    if report.verdict is None:
        return ""
    numbers = [f"KL {format_number(report.kl_divergence)}"]
    if report.base_divergence is not None:
        numbers.append(f"adapter's effect {format_number(report.base_divergence)} nats per token")
    if report.noise_divergence is not None:
        numbers.append(f"noise {format_number(report.noise_divergence)}")
    if report.slope is not None:
        numbers.append(f"slope {format_number(report.slope)}")
    if report.surviving_update is not None:
        numbers.append(f"{report.surviving_update:.1%} of the update survives")
    return f"{report.verdict}: {', '.join(numbers)}"


def _format_warnings(shown: dict[str, Any]) -> None:
    """Format the numbers of `warnings` in place."""
    for warning in shown.get("warnings", ()):
        for name in ("value", "threshold"):
            if name in warning:
                warning[name] = format_number(warning[name])


def choices(chosen: Iterable[Choice]) -> list[dict[str, Any]]:
    """Chosen values for status."""
    return [
        {"name": choice.name, "value": choice.value[:256], "reason": choice.reason[:1024]}
        for choice in chosen
    ]


def selection(report: SelectionReport) -> dict[str, Any]:
    """What the losses on held-out rows decided, for status."""
    shown = report.model_dump(mode="json", by_alias=True, exclude_none=True)
    if report.best_loss is not None:
        shown["bestLoss"] = format_number(report.best_loss)
    return shown


def batching(report: BatchingReport) -> dict[str, Any]:
    """How the rows of a step shared passes, for status."""
    shown = report.model_dump(mode="json", by_alias=True, exclude_none=True)
    if report.real_tokens is not None:
        shown["realTokens"] = format_number(report.real_tokens)
    return shown


def members(report: AttentionReport | KernelsReport) -> dict[str, Any]:
    """A report without numbers, for status."""
    return report.model_dump(mode="json", by_alias=True, exclude_none=True)


def trained(report: TrainResult) -> str:
    """The steps of a training, the rung if it is not the planned one, and what an open verdict needs, as one sentence."""
    if report.evaluation is None:
        verdict = "the evaluation is in the trainer's log: its contract is newer than this operator's"
    else:
        verdict = open_verdict(report.evaluation)
    return "; ".join(filter(None, (_steps(report), climbed_down(rungs(report)), verdict)))


def _steps(report: TrainResult) -> str:
    text = f"{report.steps} steps on {report.device}"
    chosen = report.selection
    if chosen is None:
        return text
    if chosen.stopped_early:
        text += f" of {chosen.planned_steps} planned: the loss on held-out rows improved no more"
    if chosen.published_step != report.steps:
        text += f"; the adapter of step {chosen.published_step} is published"
    return text


def plan(chosen: Plan) -> dict[str, Any]:
    """Chosen values and warnings for status."""
    warnings = [text[:1024] for text in chosen.warnings]
    return {"choices": choices(chosen.choices), **({"warnings": warnings} if warnings else {})}


def layout(chosen: Layout) -> dict[str, Any]:
    """The pods and GPUs of several ranks for status, and how they share the model; empty for one GPU."""
    if chosen.gpus == 1:
        return {}
    return {"nodes": chosen.nodes, "gpusPerNode": chosen.per_node, "parallelism": chosen.parallelism}


def read_parallelism(training: Mapping[str, Any]) -> Parallelism:
    """Return how the GPUs of a recorded plan share the model. That of an earlier operator has replicas."""
    return "FullyShard" if training.get("parallelism") == "FullyShard" else "DataParallel"


def ladder(rungs: Iterable[Rung]) -> list[dict[str, Any]]:
    """The rungs after the planned one for status."""
    return [
        {
            "microBatchSize": rung.micro_batch_size,
            "gradientCheckpointing": rung.gradient_checkpointing,
            "optimizer": rung.optimizer,
            "weights": rung.weights,
        }
        for rung in rungs
    ]


def rungs(result: TrainResult | None) -> dict[str, Any]:
    """The rung of an attempt and those that failed before it; empty if none failed."""
    if result is None or result.rung is None or not result.failed_rungs:
        return {}
    return result.model_dump(mode="json", by_alias=True, exclude_none=True, include={"rung", "failed_rungs"})


def climbed_down(shown: Mapping[str, Any]) -> str:
    """One clause about the rungs of `rungs`; empty if none failed."""
    failed = shown.get("failedRungs")
    if not failed:
        return ""
    found = ", ".join(f"{rung_text(each)} ({each['activity']})" for each in failed)
    return f"with {rung_text(shown['rung'])}, because the GPU was out of memory with {found}"


def estimated(estimate: Estimate) -> dict[str, Any]:
    """An estimate for status, with the terms of its peak and of the device, largest first."""
    terms = [term for term in estimate.terms if term.phase in {estimate.bottleneck, Phase.DEVICE}]
    return {
        "peakBytes": estimate.peak_bytes,
        "deviceBytes": estimate.device_bytes,
        "lowBytes": estimate.low_bytes,
        "highBytes": estimate.high_bytes,
        "bottleneck": estimate.bottleneck.value,
        "terms": [
            {"name": term.name, "bytes": term.bytes, "phase": term.phase.value}
            for term in sorted(terms, key=lambda term: -term.bytes)[:MAXIMUM_TERMS]
            if term.bytes
        ],
    }


def memory(plan: Mapping[str, Any], measured: MemoryReport | None) -> dict[str, Any]:
    """GPU memory of an attempt: the estimate of `status.plan` and the trainer's measurement."""
    shown: dict[str, Any] = {}
    estimate = plan.get("memory") or {}
    for name, member in (("estimatedBytes", "peakBytes"), ("estimatedDeviceBytes", "deviceBytes")):
        if member in estimate:
            shown[name] = estimate[member]
    if measured is not None:
        shown |= measured.model_dump(mode="json", by_alias=True, exclude_none=True)
    return shown
