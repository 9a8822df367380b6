"""What a tracker is told of a run: parameters, metrics by step, tags and the model, from the job's report.

Equal reports give equal records, so that a record that was sent twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_trainer.workspace.layout import digest_of

_CURVE = {"loss": "loss", "learningRate": "learning_rate", "gradientNorm": "grad_norm"}
_PREFERENCE = ("Merged", "Adapter")


@dataclass(frozen=True)
class Metric:
    """A value at an optimizer step. `time` is in milliseconds since the epoch."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Model:
    """The published model: its place, and the digests by which a reader proves it."""

    kind: str
    uri: str
    digest: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """One run. Times are in milliseconds since the epoch; `model` is None if nothing was published."""

    name: str
    uid: str
    started: int
    ended: int
    parameters: Mapping[str, str]
    metrics: tuple[Metric, ...]
    tags: Mapping[str, str]
    model: Model | None
    failed: bool = False

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return digest_of(
            {
                "parameters": dict(self.parameters),
                "metrics": [[each.key, each.value, each.step, each.time] for each in self.metrics],
                "tags": dict(self.tags),
                "model": None if self.model is None else [self.model.uri, self.model.digest],
            }
        )


def make_record(report: Mapping[str, Any], uid: str, digests: Mapping[str, str] = {}) -> Record:
    """Return the record of a job from its report (`report/job.json`).

    `uid` identifies the FineTuneJob. `digests` are those of the published `manifest` and of its `content`. Members that the
    report lacks are left out.
    """
    job, merge = report["job"], report.get("merge") or {}
    started, ended = _times(report.get("timeline") or ())
    trained = _end_of_training(report.get("timeline") or ()) or ended
    tags = {
        "finetune.uid": uid,
        "finetune.job": f"{job['namespace']}/{job['name']}",
        "finetune.spec_hash": str(report.get("specHash")),
        "finetune.state": str(report.get("state")),
    }
    evaluation, failure = report.get("evaluation") or {}, report.get("failure") or {}
    verification = merge.get("verification") or {}
    for name, value in (
        ("finetune.failure.stage", failure.get("stage")),
        ("finetune.failure.reason", failure.get("reason")),
        ("finetune.failure.message", failure.get("message")),
        ("finetune.verdict", evaluation.get("verdict")),
        ("finetune.proof", verification.get("verdict")),
        ("finetune.device", (report.get("training") or {}).get("device")),
        *((f"finetune.{name}", digest) for name, digest in digests.items()),
    ):
        if value:
            tags[name] = str(value)
    for artifact in merge.get("artifacts") or ():
        kind = artifact["kind"].lower()
        tags[f"finetune.artifact.{kind}.uri"] = artifact["uri"]
        tags[f"finetune.artifact.{kind}.digest"] = artifact["digest"]
    return Record(
        name=job["name"],
        uid=uid,
        started=started,
        ended=ended,
        parameters=_parameters(report),
        metrics=tuple(sorted(_metrics(report, trained), key=lambda each: (each.step, each.key))),
        tags=tags,
        model=None if failure else _model(merge, tags),
        failed=bool(failure),
    )


def _parameters(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of the training, the base model and the data. Names are paths with dots."""
    base, data = report.get("base") or {}, report.get("dataset") or {}
    wanted = {
        "model": {
            name: base.get(name) for name in ("name", "architecture", "parameters", "commit", "digest")
        },
        "dataset": {
            name: data.get(name)
            for name in (
                "digest",
                "rows",
                "kept",
                "trainingExamples",
                "validationExamples",
                "source",
                "format",
            )
        },
        "training": report.get("plan") or {},
        "mergeOnto": report.get("mergeOnto"),
    }
    return dict(_flat("", wanted))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), each)
    elif isinstance(value, list | tuple):
        if value:
            yield prefix, ", ".join(str(each) for each in value)
    elif value is not None:
        yield prefix, str(value)


def _metrics(report: Mapping[str, Any], time: int) -> Iterator[Metric]:
    """Yield the curves by step, then the final numbers at the last step. Numbers that are not finite are left out."""
    curve, training = report.get("curve") or {}, report.get("training") or {}
    found: list[tuple[str, Any, int]] = []
    for point in curve.get("points") or ():
        found += [(key, point.get(name), point["step"]) for name, key in _CURVE.items()]
    found += [("eval_loss", point["loss"], point["step"]) for point in curve.get("heldOut") or ()]
    last = int(training.get("steps") or 0)
    found += [(key, value, last) for key, value in _results(report, training)]
    for key, value, step in found:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield Metric(key, float(value), int(step), time)


def _results(report: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    evaluation = report.get("evaluation") or {}
    verification = (report.get("merge") or {}).get("verification") or {}
    memory = training.get("memory") or {}
    yield "training_loss", training.get("trainingLoss")
    yield "tokens_per_second", training.get("tokensPerSecond")
    for name, key in (
        ("baseLoss", "base_loss"),
        ("tunedLoss", "tuned_loss"),
        ("difference", "loss_difference"),
    ):
        yield key, evaluation.get(name)
    for place, bound in enumerate(("low", "high")):
        interval = evaluation.get("interval") or ()
        yield f"loss_difference_{bound}", interval[place] if len(interval) == 2 else None
    accuracy = evaluation.get("tokenAccuracy") or {}
    yield "token_accuracy_base", accuracy.get("base")
    yield "token_accuracy_tuned", accuracy.get("tuned")
    for metric in evaluation.get("metrics") or ():
        for side in ("base", "tuned"):
            yield f"{metric['name']}_{side}", metric.get(side)
    for name, key in (("allocatedBytes", "gpu_allocated_bytes"), ("deviceBytes", "gpu_device_bytes")):
        yield key, memory.get(name)
    for name, key in (
        ("klDivergence", "merge_kl_divergence"),
        ("mergedLoss", "merged_loss"),
        ("survivingUpdate", "surviving_update"),
    ):
        yield key, verification.get(name)


def _model(merge: Mapping[str, Any], tags: Mapping[str, str]) -> Model | None:
    """Return the merged model, or the adapter if there is none."""
    artifacts = {each["kind"]: each for each in merge.get("artifacts") or ()}
    for kind in _PREFERENCE:
        if kind in artifacts:
            found = artifacts[kind]
            return Model(kind, found["uri"], found["digest"], {**tags, "finetune.artifact.kind": kind})
    return None


def _times(timeline: Any) -> tuple[int, int]:
    times = [each[name] for each in timeline for name in ("startTime", "completionTime") if each.get(name)]
    found = sorted(milliseconds(each) for each in times)
    return (found[0], found[-1]) if found else (0, 0)


def _end_of_training(timeline: Any) -> int | None:
    """Return the end of the TRAIN that succeeded. The curve has no times of its steps."""
    ends = [
        each["completionTime"]
        for each in timeline
        if each.get("stage") == "Train" and each.get("outcome") == "Succeeded" and each.get("completionTime")
    ]
    return milliseconds(ends[-1]) if ends else None


def milliseconds(text: str) -> int:
    """Return a time of the contract as milliseconds since the epoch."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
