"""The result of a stage as typed values: contract/result.schema.json.

A member that was not set is not written, so a result that an earlier version wrote is read and written back unchanged.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

Metric = Literal["ExactMatch", "JsonValid", "JsonFields"]
"""Metrics on generated answers, see `evaluation.task_metrics`."""


class Part(BaseModel):
    """Immutable, camelCase in JSON; unknown members are ignored, as the contract asks of every reader."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, ser_json_inf_nan="constants"
    )

    def document(self) -> dict[str, Any]:
        """Return the part as JSON, without the members that were not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def read(cls, document: dict[str, Any] | None) -> Self | None:
        """Read what `document` returned, for example from a marker.

        None for None and for a document that lacks required members: its step then counts as not finished.
        """
        if document is None:
            return None
        try:
            return cls.model_validate(document)
        except ValidationError:
            return None


def _finite(value: float | None) -> float | None:
    """A number that is not finite is not known, and no JSON can carry it."""
    return value if value is None or math.isfinite(value) else None


_Known = Annotated[float | None, AfterValidator(_finite)]


class FormatResult(Part):
    """The format in which the rows were read, and the reason for it."""

    name: str
    why: str


class EndToken(Part):
    """A token that ends an answer, and its text."""

    id: int
    text: str


class LearnedExample(Part):
    """The text that the labels of one row decode to."""

    row: int
    learned: str


class TablesResult(Part):
    """Rows and examples of the finished tables.

    `digest` is over ids and labels of all examples in order. `rejected` counts rows by reason. `source` and
    `validation_source` identify the bytes that were read; they never hold a URL or a secret. `end_tokens` are those at
    which answers end, the most frequent first; a result before version 1.3 has none.
    """

    digest: str
    rows: int
    kept: int
    duplicates: int = 0
    rejected: dict[str, int]
    training_examples: int
    validation_examples: int
    supervised_tokens: int
    longest_example: int
    shortened: int | None = None
    format: FormatResult | None = None
    example: LearnedExample | None = None
    source: dict[str, Any] | None = None
    validation_source: dict[str, Any] | None = None
    end_tokens: tuple[EndToken, ...] | None = None


class LanguageShare(Part):
    """One language and its share of the sampled rows, from 0 to 1."""

    code: str
    fraction: float


class WarningResult(Part):
    """A finding that a person should look at: the number found, its limit, and what to do."""

    code: str
    value: int | float | None = None
    threshold: int | float | None = None
    message: str


class CoverageResult(Part):
    """The number of target prompts, and of those that have a similar training prompt."""

    targets: int
    covered: int


class StatisticsResult(Part):
    """The head of the dataset report. A number that is not known is not set; version 1.0 had only the warnings.

    Fractions are of the kept rows. A warning from version 1.0 is its sentence alone.
    """

    near_duplicates: int | None = None
    leaked: int | None = None
    languages: tuple[LanguageShare, ...] = ()
    reasoning_fraction: float | None = None
    shortened: int | None = None
    warnings: tuple[WarningResult | str, ...]
    prompt_variety: float | None = None
    capacity_ratio: float | None = None
    coverage: CoverageResult | None = None


class DatasetResult(StatisticsResult, TablesResult):
    """The `dataset` member of PREPARE's result."""

    @classmethod
    def join(cls, tables: TablesResult, statistics: StatisticsResult) -> DatasetResult:
        """Join the tables' part of the result with the head of the report on them."""
        return cls.model_validate({**tables.document(), **statistics.document()})


class ModelResult(Part):
    """The base model and its 4-bit checkpoint.

    `parameters` counts those of the base, `bytes` is the checkpoint's size, `digest` is over its weight files.
    `config` has the members of config.json that decide the memory of a run.
    """

    architecture: str
    parameters: int
    commit: str | None = None
    digest: str
    quantized_modules: int
    bytes: int
    config: dict[str, Any] | None = None


class PrepareResult(Part):
    """The `prepare` member of the result."""

    dataset: DatasetResult
    model: ModelResult


class MemoryResult(Part):
    """Measured peaks of the GPU's memory in bytes.

    `allocated_bytes` is the most that tensors took, `reserved_bytes` the most that torch's allocator held,
    `device_bytes` the most in use on the device, `usable_bytes` all that the device has, and `load_bytes` the most
    that tensors took until the model was loaded.
    """

    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int | None = None
    usable_bytes: int | None = None
    load_bytes: int | None = None


class PairedResult(Part):
    """A number for base and tuned model on the same rows; `difference` is tuned less base, with its 95 % interval."""

    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]


class PerplexityResult(Part):
    """The exponentials of the losses; `ratio` is tuned by base, with its paired 95 % interval."""

    base: float
    tuned: float
    ratio: float
    interval: tuple[float, float]


class MetricResult(Part):
    """One task metric on generated answers: shares from 0 to 1, higher is better, and a paired 95 % interval.

    If it could not be measured, `rows` is 0, `reason` says why, and the numbers are not set.
    """

    name: Metric
    rows: int
    base: float | None = None
    tuned: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None


class EvaluationResult(Part):
    """Base against tuned model on the same held-out rows.

    Losses are in nats per supervised token, and so is `difference`, tuned less base: negative is better.
    `interval` is the paired 95 % interval of the difference, and the verdict follows from it. A result before version 1.5
    has none of the later members. `by_row` has the means over rows of each row's loss per token. `token_accuracy` has the
    shares of supervised tokens that are the most likely ones. `needed_rows` is about the number of rows that a clear
    verdict needs; it is set if the verdict is NoChange or Inconclusive, unless no number of rows suffices.
    """

    rows: int
    base_loss: float
    tuned_loss: float
    difference: float
    interval: tuple[float, float]
    verdict: Literal["Improved", "NoChange", "Worse", "Inconclusive"]
    by_row: PairedResult | None = None
    token_accuracy: PairedResult | None = None
    perplexity: PerplexityResult | None = None
    needed_rows: int | None = None
    metrics: tuple[MetricResult, ...] | None = None


class RungResult(Part):
    """How the GPU held a step: rows of a forward pass, and whether activations were computed twice."""

    micro_batch_size: int
    gradient_checkpointing: bool


class FailedRungResult(RungResult):
    """A rung that did not fit: the activity in which the GPU ran out of memory, and the peaks until then.

    `step` is the training step that failed. The peaks are in bytes, as in `MemoryResult`; not set if not measured.
    """

    activity: str
    step: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class ProbeResult(Part):
    """The peaks in bytes until the end of the probe: two steps on the longest batch, of rows of `sequence_length` tokens.

    They are not set on a CPU.
    """

    sequence_length: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class SelectionResult(Part):
    """What the losses on held-out rows decided. Losses are in nats per supervised token.

    `rows` of the validation rows were measured `measurements` times, after `planned_steps` steps at the latest. The adapter
    of `published_step` is published. The best step is not set if no loss was finite.
    """

    rows: int
    measurements: int
    planned_steps: int
    published_step: int
    stopped_early: bool
    best_step: int | None = None
    best_loss: float | None = None


class VersionChange(Part):
    """A package that had the version `before` until `step`, and `after` from then on; "none" if there was none."""

    name: str
    before: str
    after: str
    step: int


class TrainResult(Part):
    """The `train` member of the result. `training_loss` is in nats per supervised token.

    `rung` is the one that ran, and `failed_rungs` are those that did not fit before it. `probe` is not set if the run
    continued after its last step. `selection` is set if the run stops early or keeps the best step.
    `versions` are those of the software that computed the end of the run, and `version_changes` those of a run that
    continued with other versions. A result before version 1.5 has none of the six.
    """

    device: str
    steps: int
    training_loss: float
    tokens_per_second: float | None = None
    adapter_digest: str
    memory: MemoryResult | None = None
    evaluation: EvaluationResult
    rung: RungResult | None = None
    failed_rungs: tuple[FailedRungResult, ...] | None = None
    probe: ProbeResult | None = None
    selection: SelectionResult | None = None
    versions: dict[str, str] | None = None
    version_changes: tuple[VersionChange, ...] | None = None


class ArtifactResult(Part):
    """One published folder; `digest` is over the sorted list of its files' names and digests.

    `base_digest` is set for an adapter: the digest of the base as trained that was published with it.
    """

    kind: Literal["Adapter", "Merged", "BaseAsTrained"]
    uri: str
    digest: str
    bytes: int
    files: int
    base_digest: str | None = None


class VerificationResult(Part):
    """Trained against merged model on recorded rows, and one answer of the merged model.

    `kl_divergence` is the mean of KL(trained || merged) over `tokens` positions, in nats. Losses are in nats per
    supervised token. What is not known is not set, and a result before version 1.4 has none of the later members.

    `base_divergence` is the mean of KL(trained || base), which is the adapter's effect. `noise_divergence` is what one
    honest rounding and the device's arithmetic make. `slope` is that of log p(merged) - log p(base) on
    log p(trained) - log p(base), and it may differ from 1 by `slope_tolerance`. The verdict is Unproven if the effect
    is below the noise. `surviving_update` is the share of the update in the written weights, by projection over all
    tensors, and `weakest_survival` is that of `weakest_tensor`, which has the smallest. `adapter_on_original_loss` is
    the loss of the adapter on the base's original weights.
    """

    rows: int
    tokens: int
    kl_divergence: float
    trained_loss: float
    merged_loss: float
    prompt: str
    answer: str
    verdict: Literal["Proven", "Unproven"] | None = None
    base_divergence: _Known = None
    noise_divergence: _Known = None
    slope: _Known = None
    slope_tolerance: _Known = None
    surviving_update: _Known = None
    weakest_tensor: str | None = None
    weakest_survival: _Known = None
    adapter_on_original_loss: _Known = None
    warnings: tuple[WarningResult, ...] | None = None


class MergeResult(Part):
    """The `merge` member of the result; `verification` is None only if no merged model was asked for."""

    artifacts: tuple[ArtifactResult, ...]
    verification: VerificationResult | None


class CompletedResult(Part):
    """Results of later stages that are proven to be finished for this spec; TRAIN's comes before MERGE's."""

    train: TrainResult | None = None
    merge: MergeResult | None = None


class PublishedResult(Part):
    """The results of all three stages, as the manifest of published artifacts holds them."""

    prepare: PrepareResult
    train: TrainResult
    merge: MergeResult


class StageResult(Part):
    """The members that one successful stage adds to the result: its own, and from PREPARE perhaps `completed`."""

    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    merge: MergeResult | None = None
    completed: CompletedResult | None = None


class Result(Part):
    """The whole result. `reason`, `message` and `log_tail` are set only by a stage that did not succeed."""

    version: str
    uid: str
    stage: str
    attempt: int
    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    start_time: str
    completion_time: str
    peak_memory_bytes: int | None = None
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    merge: MergeResult | None = None
    completed: CompletedResult | None = None
    reason: str | None = None
    message: str | None = None
    log_tail: tuple[str, ...] = ()
