"""What a run computes: steps, tokens, passes and bytes. Nothing here depends on the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from finetune_operator.api.plan import DEFAULT_EPOCHS
from finetune_operator.api.spec import DEFAULT_GENERATED_ROWS, FineTuneJobSpec
from finetune_operator.sizing.ladder import RECOMPUTING, TOKENS_OF_AN_UPDATE
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.training_plan import TrainingPlan

FORWARD, BACKWARD = 2, 2
"""Operations for each weight and token. Frozen weights need no gradient of their own, only that of their input."""
ATTENTION_FORWARD, ATTENTION_BACKWARD = 2, 5
"""The same for each width of the queries, each layer and each token that a token sees on average: half of its row.

Forward there are two products of two operations. Backward, a fused kernel has five.
"""
PACKED_BYTES, DEQUANTIZED_BYTES = 4.5, 2.0
"""Bytes that a product moves for each weight: read 4 bits, write and read 16 bits; or only read 16 bits."""
QUANTIZED_BYTES = 0.53
"""Bytes of a 4-bit weight with its constants."""
FILL = {"low": 1.0, "expected": 0.97, "high": 0.9}
"""Share of a pass that packed rows fill."""
REAL_TOKENS = {"low": 1.0, "expected": 0.9, "high": 0.75}
"""Share of the computed tokens that are no padding if rows are grouped (docs/training.md)."""
ANSWER_TOKENS = 512
"""Most tokens of a generated answer that count here."""
ROWS_OF_A_GENERATION = 16
SECONDS_TO_GENERATE = 120.0
"""The trainer's limit on the time for the default number of answers."""
PROBE_STEPS = 2
UNEVEN = {"low": 1.0, "expected": 1.05, "high": 1.25}
"""Time of the slowest of several GPUs, as a multiple of that of its share of the rows. All wait for it. It is a guess."""
_BOUNDS = ("low", "expected", "high")


@dataclass(frozen=True)
class Span:
    """A number that is not known exactly: `low` <= `expected` <= `high`."""

    low: float
    expected: float
    high: float

    def of(self, bound: str) -> float:
        """The value of one bound."""
        return {"low": self.low, "expected": self.expected, "high": self.high}[bound]


@dataclass(frozen=True)
class Rows:
    """The data of a run: numbers of rows, and the tokens of all training rows. `reason` says where these come from.

    `longest` is the longest row in tokens. `answer` is the mean number of tokens of a row that carry a label.
    """

    training: int
    validation: int
    tokens: Span
    longest: int
    answer: float
    reason: str


@dataclass(frozen=True)
class Sizes:
    """What of a model's shape decides about time. `attention` is the width of all queries, over all layers with attention."""

    parameters: int
    linear_weights: int
    embedding_weights: int
    head_weights: int
    layers: int
    attention: int


@lru_cache(maxsize=512)
def sizes_of(shape: ModelShape) -> Sizes:
    """Sum up a model's shape. Most jobs of a cluster tune few models."""
    return Sizes(
        shape.parameters,
        shape.linear_weights,
        shape.embedding_weights,
        shape.vocabulary * shape.hidden,
        shape.layers,
        shape.attention_layers * shape.query_width,
    )


@dataclass(frozen=True)
class Pass:
    """One kind of pass: how many there are, and what each computes and moves. `layers` are those that start kernels."""

    count: float
    operations: float
    bytes: float
    layers: float


@dataclass(frozen=True)
class Work:
    """All that TRAIN computes on one of its GPUs, the slowest, for one bound of the estimate.

    `tokens` are those of the training on all GPUs without padding.
    """

    steps: int
    tokens: float
    training: Pass
    probe: Pass
    evaluation: Pass
    selection: Pass
    generation: Pass
    generation_limit: float
    checkpoints: int


def known_rows(
    training: int,
    validation: int,
    longest: int,
    *,
    supervised: int = 0,
    tokens: int | None = None,
) -> Rows:
    """Describe data. Without `tokens`, the total of the training rows, the mean row is guessed from the longest one.

    `supervised` is the number of tokens that carry a label, which are part of the rows.
    """
    most = training * longest
    answer = supervised / training if training else 0.0
    if tokens is not None:
        exact = float(min(max(tokens, training), most))
        return Rows(training, validation, Span(exact, exact, exact), longest, answer, "")
    low = min(max(supervised, most // 10, training), most)
    expected = min(max(most // 2, low), most)
    reason = (
        "the tokens of the rows are not known: the mean row is taken as half of the longest one, "
        "from a tenth or the labeled tokens to all of it"
    )
    return Rows(training, validation, Span(low, expected, most), longest, answer, reason)


def rows_of(dataset: Mapping[str, Any] | None) -> Rows | None:
    """The data as PREPARE has reported it; None before that. A trainer before contract 1.9 does not count all tokens."""
    if dataset is None or "trainingExamples" not in dataset or "longestExample" not in dataset:
        return None
    tokens = dataset.get("trainingTokens")
    return known_rows(
        int(dataset["trainingExamples"]),
        int(dataset.get("validationExamples", 0)),
        int(dataset["longestExample"]),
        supervised=int(dataset.get("supervisedTokens", 0)),
        tokens=None if tokens is None else int(tokens),
    )


def planned_steps(spec: FineTuneJobSpec, rows: int) -> int:
    """The optimizer steps of a run, as the trainer counts them: the last batch of an epoch has its step, too."""
    training = spec.training
    if training.maximum_steps is not None:
        return training.maximum_steps
    epochs = DEFAULT_EPOCHS if training.epochs is None else training.epochs
    return max(1, ceil(epochs * ceil(rows / training.effective_batch_size)))


def work_of(spec: FineTuneJobSpec, sizes: Sizes, plan: TrainingPlan, rows: Rows, bound: str) -> Work:
    """Count what a run computes, for the `low`, `expected` or `high` bound."""
    training, evaluation = spec.training, spec.evaluation
    steps = _steps(spec, rows, bound)
    mean = rows.tokens.of(bound) / max(1, rows.training)
    # The last batch of an epoch may have fewer rows, but it costs at least one pass.
    batch = rows.training / max(1, ceil(rows.training / training.effective_batch_size))
    tokens = steps * batch * mean
    passes, computed = _passes(training.packing, plan, batch * mean * _share(batch, plan.ranks, bound), bound)
    length = min(mean, float(rows.longest))
    recomputing = RECOMPUTING if plan.gradient_checkpointing else 1.0
    update = TOKENS_OF_AN_UPDATE[plan.optimizer] * (FORWARD + BACKWARD) * sizes.parameters
    one = Pass(
        count=steps * passes,
        operations=recomputing * _operations(sizes, computed / passes, length) + update / passes,
        bytes=2 * recomputing * _bytes(sizes, plan),
        layers=2 * recomputing * sizes.layers,
    )
    longest = float(plan.tokens)
    probe = Pass(
        PROBE_STEPS,
        recomputing * _operations(sizes, longest, float(plan.sequence_length)),
        one.bytes,
        one.layers,
    )
    judged = min(evaluation.maximum_rows, rows.validation)
    intervals = _measurements(spec, steps)
    selecting = training.early_stopping
    held_out = min(100 if selecting is None else selecting.maximum_rows, rows.validation)
    checkpoints = ceil(steps / training.checkpoint.interval_steps)
    return Work(
        steps=steps,
        tokens=tokens,
        training=one,
        probe=probe,
        evaluation=_forward(sizes, plan, 2 * judged, mean),
        selection=_forward(sizes, plan, intervals * held_out, mean),
        generation=_generation(spec, sizes, plan, rows),
        generation_limit=SECONDS_TO_GENERATE * max(1.0, evaluation.generated_rows / DEFAULT_GENERATED_ROWS),
        checkpoints=checkpoints,
    )


def _steps(spec: FineTuneJobSpec, rows: Rows, bound: str) -> int:
    """The steps of the whole run. Early stopping may end it after its patience, which is the lower bound."""
    steps, stopping = planned_steps(spec, rows.training), spec.training.early_stopping
    if stopping is None or bound != "low":
        return steps
    return min(steps, (stopping.patience + 1) * stopping.interval_steps)


def _share(batch: float, ranks: int, bound: str) -> float:
    """The part of a step of `batch` rows that the slowest of `ranks` GPUs computes. Rows are not divided."""
    rows = max(1, ceil(batch))
    fair = 1 / ranks if bound == "low" else ceil(rows / ranks) / rows
    return fair if ranks == 1 else min(1.0, fair * UNEVEN[bound])


def _passes(packing: str | None, plan: TrainingPlan, tokens: float, bound: str) -> tuple[float, float]:
    """Number of passes of one GPU in a step in which it has so many real tokens, and the tokens that they compute together."""
    accumulated = float(plan.gradient_accumulation)
    if packing == "Never":
        return accumulated, tokens / REAL_TOKENS[bound]
    return min(accumulated, max(1.0, tokens / (FILL[bound] * plan.tokens))), tokens


def _operations(sizes: Sizes, tokens: float, length: float) -> float:
    """Operations of a training pass of `tokens`, in rows of `length`."""
    attention = (ATTENTION_FORWARD + ATTENTION_BACKWARD) * sizes.attention * length
    return tokens * ((FORWARD + BACKWARD) * sizes.parameters + attention)


def _bytes(sizes: Sizes, plan: TrainingPlan) -> float:
    """Bytes that move in one direction of a pass, whatever its tokens."""
    each = DEQUANTIZED_BYTES if plan.weights == "Dequantized" else PACKED_BYTES
    return each * sizes.linear_weights + DEQUANTIZED_BYTES * sizes.head_weights


def _forward(sizes: Sizes, plan: TrainingPlan, rows: float, length: float) -> Pass:
    """Passes of an evaluation, each of as many rows as a micro-batch."""
    tokens = plan.micro_batch_size * length
    attention = ATTENTION_FORWARD * sizes.attention * length
    operations = tokens * (FORWARD * sizes.parameters + attention)
    return Pass(rows / plan.micro_batch_size, operations, _bytes(sizes, plan), sizes.layers)


def _measurements(spec: FineTuneJobSpec, steps: int) -> int:
    """How often the loss on held-out rows is measured during the training."""
    training = spec.training
    if training.early_stopping is not None:
        return ceil(steps / training.early_stopping.interval_steps)
    return ceil(steps / training.checkpoint.interval_steps) if training.checkpoint.keep == "Best" else 0


def _generation(spec: FineTuneJobSpec, sizes: Sizes, plan: TrainingPlan, rows: Rows) -> Pass:
    """One pass for each token of the longest answer of a batch, by the base and by the tuned model."""
    evaluation = spec.evaluation
    asked = min(evaluation.generated_rows, rows.validation)
    batches = ceil(asked / ROWS_OF_A_GENERATION) + (1 if evaluation.sample_prompts else 0)
    tokens = min(ANSWER_TOKENS, ceil(1.5 * rows.answer) if rows.answer else ANSWER_TOKENS // 2)
    operations = FORWARD * sizes.parameters * ROWS_OF_A_GENERATION
    return Pass(2.0 * batches * tokens, operations, _bytes(sizes, plan), sizes.layers)
