"""The trainer's documents as typed values within the bounds of the CRD's status schema. `reading` makes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from finetune_operator.api.plan import Optimizer, Weights
from finetune_operator.api.stages import Stage
from finetune_operator.contract.artifacts import Artifacts, Publications, TrackerRecords
from finetune_operator.contract.bounded import (
    Attempt,
    ConfigName,
    Count,
    Digest,
    Document,
    Finite,
    NotNegative,
    Positive,
    Rank,
    Scalar,
    Step,
    Text64,
    Text128,
    Text256,
    Text512,
    Text1024,
    Time,
    Version,
    Word,
)
from finetune_operator.contract.dataset_report import DatasetReport, TrainerWarning
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.contract.training_report import TrainingReport

NEWER = {"newer": True}
"""Context of the validation of a document whose minor version is later than this one."""


def _nested_once(config: dict[str, Any]) -> dict[str, Any]:
    """Check that a config nests only its text part."""
    nested = [name for name, value in config.items() if isinstance(value, dict)]
    if nested not in ([], ["text_config"]):
        raise ValueError("must nest no object but `text_config`")
    return config


ConfigMembers = Annotated[dict[ConfigName, Scalar], Field(max_length=64)]
ModelConfig = Annotated[
    dict[ConfigName, Scalar | ConfigMembers], Field(max_length=64), AfterValidator(_nested_once)
]
"""Members of the base model's config.json (contract/model_config.json)."""


class ModelReport(Document):
    """The quantized base model that PREPARE put into the workspace.

    A trainer before contract 1.10 traces no model. `trace_problem` says why a later one could not.
    """

    architecture: Text128
    parameters: Positive
    commit: Text64 | None = None
    digest: Digest
    quantized_modules: Positive
    bytes: Positive
    config: ModelConfig | None = None
    trace: MemoryTrace | None = None
    trace_problem: Text256 | None = None


class PrepareResult(Document):
    """The result of PREPARE."""

    dataset: DatasetReport
    model: ModelReport


class PairedReport(Document):
    """A number for base and tuned model; `difference` is tuned minus base, with its paired 95 % interval."""

    base: Finite
    tuned: Finite
    difference: Finite
    interval: tuple[Finite, Finite]


class MetricReport(Document):
    """One metric on generated answers. If it was not measured, `reason` says why, and the numbers are missing."""

    name: Literal["ExactMatch", "JsonValid", "JsonFields"]
    rows: Count
    base: Finite | None = None
    tuned: Finite | None = None
    difference: Finite | None = None
    interval: tuple[Finite, Finite] | None = None
    reason: Text128 | None = None


def _distinct_names(metrics: tuple[MetricReport, ...]) -> tuple[MetricReport, ...]:
    """The status is a list-map by name, so the API server rejects a status that repeats a name."""
    if len({metric.name for metric in metrics}) != len(metrics):
        raise ValueError("must have each metric at most once")
    return metrics


class EvaluationReport(Document):
    """Loss before and after training, in nats per supervised token.

    A trainer before contract 1.5 sends none of the members after the verdict.
    """

    rows: Positive
    base_loss: Finite
    tuned_loss: Finite
    difference: Finite
    interval: tuple[Finite, Finite]
    verdict: Literal["Improved", "NoChange", "Worse", "Inconclusive"]
    needed_rows: Positive | None = None
    by_row: PairedReport | None = None
    token_accuracy: PairedReport | None = None
    metrics: Annotated[tuple[MetricReport, ...], Field(max_length=3), AfterValidator(_distinct_names)] = ()


class MemoryReport(Document):
    """Measured peaks of the GPU's memory, in bytes; `device_bytes` is the value that nvidia-smi shows."""

    allocated_bytes: Count
    reserved_bytes: Count
    device_bytes: Count | None = None
    usable_bytes: Count | None = None
    load_bytes: Count | None = None


class SelectionReport(Document):
    """What the losses on held-out rows decided. `best_loss` is in nats per supervised token."""

    rows: Positive
    measurements: Count
    planned_steps: Positive
    published_step: Positive
    stopped_early: bool
    best_step: Positive | None = None
    best_loss: Finite | None = None


class BatchingReport(Document):
    """How the rows of a step shared passes. `reason` says why they were not packed."""

    kind: Literal["Packed", "Grouped", "AsDrawn"]
    budget_tokens: Positive
    real_tokens: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    reason: Annotated[str, Field(max_length=512)] | None = None


class AttentionReport(Document):
    """The attention that computed the passes of the training, and why."""

    backend: Literal["Varlen", "Sdpa", "RowByRow", "Math"]
    reason: Annotated[str, Field(max_length=512)]


class KernelsReport(Document):
    """The fused kernels of the training's steps, and why others were left out."""

    used: Annotated[tuple[Word, ...], Field(max_length=16)]
    reason: Annotated[str, Field(max_length=512)]


class RungReport(Document):
    """How the GPU held a step of TRAIN. A trainer before 1.7 names no optimizer and no weights."""

    micro_batch_size: Annotated[int, Field(ge=1, le=65536, strict=True)]
    gradient_checkpointing: bool
    optimizer: Optimizer | None = None
    weights: Weights | None = None


class FailedRung(RungReport):
    """A rung with which the GPU was out of memory: where, and the measured peaks."""

    activity: Word
    step: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] | None = None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None


def _only_of_a_newer_version(
    report: EvaluationReport | None, info: ValidationInfo
) -> EvaluationReport | None:
    if report is None and info.context is not NEWER:
        raise ValueError("must be there")
    return report


class TrainResult(Document):
    """The result of TRAIN.

    A trainer before contract 1.5 sends no rungs, one before 1.6 no batching, and one before 1.8 neither attention
    nor kernels.

    `evaluation` is None if a newer trainer sends one that cannot be read here, with a new verdict for example.
    """

    device: Text64
    steps: Positive
    training_loss: Finite
    tokens_per_second: Finite | None = None
    adapter_digest: Digest
    memory: MemoryReport | None = None
    evaluation: Annotated[
        EvaluationReport | None, Field(validate_default=True), AfterValidator(_only_of_a_newer_version)
    ] = None
    selection: SelectionReport | None = None
    rung: RungReport | None = None
    failed_rungs: Annotated[tuple[FailedRung, ...], Field(max_length=17)] | None = None
    batching: BatchingReport | None = None
    attention: AttentionReport | None = None
    kernels: KernelsReport | None = None


class Verification(Document):
    """Comparison of the merged model with the trained one. Losses and divergences are in nats per token.

    A trainer before contract 1.4 sends neither a verdict nor the numbers of the proof.
    """

    rows: Positive
    tokens: Positive
    kl_divergence: Finite
    trained_loss: Finite
    merged_loss: Finite
    prompt: Text512
    answer: Text512
    verdict: Literal["Proven", "Unproven"] | None = None
    base_divergence: Finite | None = None
    noise_divergence: Finite | None = None
    slope: Finite | None = None
    slope_tolerance: Finite | None = None
    surviving_update: Finite | None = None
    weakest_tensor: Text128 | None = None
    weakest_survival: Finite | None = None
    adapter_on_original_loss: Finite | None = None
    warnings: Annotated[tuple[TrainerWarning, ...], Field(max_length=4)] | None = None


class MergeResult(Document):
    """The result of MERGE. A trainer before contract 1.8 sends no publications, one before 1.9 no tracking."""

    artifacts: Artifacts
    verification: Verification | None = None
    publications: Publications | None = None
    tracking: TrackerRecords | None = None


class CompletedStages(Document):
    """Later stages that PREPARE found finished for the same spec hash."""

    train: TrainResult | None = None
    merge: MergeResult | None = None


class ReportFailure(Document):
    """Why no or not every destination has the report."""

    reason: Word
    message: Text1024 = ""


class ReportResult(Document):
    """The result of the step Report if it told trackers, since contract 1.10. Its two tasks fail apart from each other."""

    tracking: TrackerRecords
    failure: ReportFailure | None = None


class Result(Document):
    """The final document of a stage (contract/result.schema.json)."""

    version: Version
    uid: Text64
    stage: Stage
    attempt: Attempt
    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    reason: Word | None = None
    message: Text1024 = ""
    rank: Rank | None = None
    """The rank of this pod that failed first, since 1.13; None if another pod's did, or no single one."""
    start_time: Time
    completion_time: Time
    peak_memory_bytes: Count | None = None
    log_tail: Annotated[tuple[Text256, ...], Field(max_length=20)] = ()
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    merge: MergeResult | None = None
    completed: CompletedStages | None = None
    report: ReportResult | None = None


class Progress(Document):
    """The progress of a running stage (contract/progress.schema.json)."""

    version: Version
    uid: Text64
    stage: Stage
    attempt: Attempt
    activity: Word
    """Any word, because a newer minor version may have activities that this version does not know."""
    step: Step
    total_steps: Step | None
    loss: Finite | None = None
    learning_rate: Finite | None = None
    gradient_norm: NotNegative | None = None
    tokens_per_second: NotNegative | None = None
    peak_memory_bytes: Count | None = None
    start_time: Time
    heartbeat_time: Time
    estimated_completion_time: Time | None = None
    training: TrainingReport | None = None
    config: ModelConfig | None = None
    """The base model's config.json, which PREPARE reports as soon as it is downloaded."""
    trace: MemoryTrace | None = None
    """The model's memory, which PREPARE reports before it fetches weights."""

    @property
    def ratio(self) -> float | None:
        """The completed share of the activity, from 0 to 1. None while the number of steps is unknown."""
        if not self.total_steps:
            return None
        return min(self.step / self.total_steps, 1.0)
