"""The `train` member of a result, and what it consists of: contract/result.schema.json."""

from __future__ import annotations

from typing import Literal

from finetune_trainer.contract.part import Part

Metric = Literal["ExactMatch", "JsonValid", "JsonFields"]
"""Metrics on generated answers, see `evaluation.task_metrics`."""


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
    """How the GPU held a step: rows of a forward pass, whether activations were computed twice, and the optimizer.

    `optimizer` is not set on a CPU, and by trainers before 1.7. `weights` is set if they were dequantized.
    """

    micro_batch_size: int
    gradient_checkpointing: bool
    optimizer: str | None = None
    weights: str | None = None


class FailedRungResult(RungResult):
    """A rung that did not fit: the activity in which the GPU ran out of memory, and the peaks until then.

    `step` is the training step that failed. The peaks are in bytes, as in `MemoryResult`; not set if not measured.
    """

    activity: str
    step: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


BatchingKind = Literal["Packed", "Grouped", "AsDrawn"]
"""How the rows of a step share passes: packed without padding, padded with rows of similar length, or padded as drawn."""


class BatchingResult(Part):
    """How the rows of a step shared passes of at most `budget_tokens` tokens.

    `real_tokens` is the share of the computed tokens that were no padding; not set if no step was measured. `reason` says
    why rows were not packed.
    """

    kind: BatchingKind
    budget_tokens: int
    real_tokens: float | None = None
    reason: str | None = None


class AttentionResult(Part):
    """The attention that computed the passes of the training, and why; see `model.attention_policy`."""

    backend: Literal["Varlen", "Sdpa", "RowByRow", "Math"] | None
    reason: str


class KernelsResult(Part):
    """The fused kernels that computed the steps of the training, and why others did not; see `model.fused.policy`."""

    used: tuple[str, ...]
    reason: str


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
    continued with other versions. A result before version 1.5 has none of the six. `batching` is since 1.6, and
    `attention` and `kernels` since 1.8.
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
    batching: BatchingResult | None = None
    attention: AttentionResult | None = None
    kernels: KernelsResult | None = None
