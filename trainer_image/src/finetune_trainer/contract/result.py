"""The result of a stage as typed values: contract/result.schema.json.

A member that was not set is not written, so a result that an earlier version wrote is read and written back unchanged.
"""

from __future__ import annotations

from typing import Any, Literal

from finetune_trainer.contract.memory_trace import MemoryTrace
from finetune_trainer.contract.part import Known, Part
from finetune_trainer.contract.tracking import TrackingResult
from finetune_trainer.contract.train_result import TrainResult


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
    which answers end, the most frequent first; a result before version 1.3 has none. `training_tokens` are those of all
    training examples, since 1.9.
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
    training_tokens: int | None = None
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
    `config` has the members of config.json that decide the memory of a run. `trace` has that memory, since 1.10;
    `trace_problem` says why it is not known.
    """

    architecture: str
    parameters: int
    commit: str | None = None
    digest: str
    quantized_modules: int
    bytes: int
    config: dict[str, Any] | None = None
    trace: MemoryTrace | None = None
    trace_problem: str | None = None


class PrepareResult(Part):
    """The `prepare` member of the result."""

    dataset: DatasetResult
    model: ModelResult


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
    base_divergence: Known = None
    noise_divergence: Known = None
    slope: Known = None
    slope_tolerance: Known = None
    surviving_update: Known = None
    weakest_tensor: str | None = None
    weakest_survival: Known = None
    adapter_on_original_loss: Known = None
    warnings: tuple[WarningResult, ...] | None = None


class PublicationResult(Part):
    """A destination that holds all artifacts. `digest` is its own name for them, such as a commit, if it has one."""

    name: str
    uri: str
    digest: str | None = None


class MergeResult(Part):
    """The `merge` member of the result; `verification` is None only if no merged model was asked for.

    `publications` are the places of `output.destinations`, in their order, and `tracking` is what the run's trackers have.
    """

    artifacts: tuple[ArtifactResult, ...]
    verification: VerificationResult | None
    publications: tuple[PublicationResult, ...] | None = None
    tracking: tuple[TrackingResult, ...] | None = None


class CompletedResult(Part):
    """Results of later stages that are proven to be finished for this spec; TRAIN's comes before MERGE's."""

    train: TrainResult | None = None
    merge: MergeResult | None = None


class PublishedResult(Part):
    """The results of all three stages, as the manifest of published artifacts holds them."""

    prepare: PrepareResult
    train: TrainResult
    merge: MergeResult


class ReportFailure(Part):
    """Why not every destination has the report."""

    reason: str
    message: str


class ReportResult(Part):
    """The `report` member of the result, since contract 1.10: what trackers have, and a failure of the copies apart from it."""

    tracking: tuple[TrackingResult, ...]
    failure: ReportFailure | None = None


class StageResult(Part):
    """The members that one successful stage adds to the result: its own, and from PREPARE perhaps `completed`."""

    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    merge: MergeResult | None = None
    completed: CompletedResult | None = None
    report: ReportResult | None = None


class Result(Part):
    """The whole result. `reason`, `message` and `log_tail` are set only by a stage that did not succeed.

    `rank` is the rank of this pod that failed first, since contract 1.13; not set if another pod's rank did, or no single one.
    """

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
    report: ReportResult | None = None
    reason: str | None = None
    message: str | None = None
    rank: int | None = None
    log_tail: tuple[str, ...] = ()
