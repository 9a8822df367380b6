"""The time that TRAIN holds its GPUs: low, expected and high."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.rates import Rates
from finetune_operator.sizing.cost.speeds import Speed
from finetune_operator.sizing.cost.work import Pass, Rows, Sizes, Span, Work, sizes_of, work_of
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.training_plan import TrainingPlan

Bound = Literal["low", "expected", "high"]
BOUNDS: tuple[Bound, ...] = ("low", "expected", "high")
START_SECONDS = Span(10, 30, 120)
"""From the start of the container until torch and CUDA are ready, and kernels are compiled."""
STORAGE_BYTES = Span(2e9, 5e8, 1e8)
"""Bytes of the 4-bit checkpoint that the workspace's volume delivers in a second: local NVMe, a cloud's disk, a share."""
CHECKPOINT_SECONDS = Span(0.05, 0.3, 5)
"""Time for which a checkpoint stops the training. It is copied, and written beside the training (ADR 0033)."""
LAYER_SECONDS = Span(0.3e-3, 0.75e-3, 1.5e-3)
"""Least time of one layer in one direction of a pass: the host starts some 150 kernels, each in 2 to 10 microseconds."""
SPREAD = Span(1.0, 0.9, 0.7)
"""N GPUs are N to the power of this as fast as one. None of them makes a run slower."""
MAXIMUM_SECONDS = 1e11
"""Three thousand years. A trainer may report any number of rows, and the status has bounds."""
QUANTIZED_BYTES = 0.53
"""Bytes of a 4-bit weight with its constants."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one attempt of TRAIN that is never interrupted.

    `parts` are the expected seconds of each part, which add up to `seconds.expected`. `tokens_per_second` is the expected
    speed of the training alone. `reason` says where the speed and the tokens come from.
    """

    seconds: Span
    parts: tuple[tuple[str, float], ...]
    steps: int
    tokens: int
    tokens_per_second: float
    source: str
    reason: str

    def gpu_hours(self, gpus: int) -> Span:
        """The hours of all GPUs together."""
        seconds = self.seconds
        return Span(*(value * gpus / 3600 for value in (seconds.low, seconds.expected, seconds.high)))


def estimate_duration(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    plan: TrainingPlan,
    rows: Rows,
    speed: Speed,
    gpus: int = 1,
) -> Duration:
    """Estimate the time of TRAIN with `plan` on `gpus` GPUs of this speed."""
    sizes = sizes_of(shape)
    works = {bound: work_of(spec, sizes, plan, rows, bound) for bound in BOUNDS}
    parts = {bound: _parts(works[bound], sizes, speed, gpus, bound) for bound in BOUNDS}
    totals = {
        bound: min(MAXIMUM_SECONDS, sum(seconds for _, seconds in found)) for bound, found in parts.items()
    }
    expected = works["expected"]
    training = dict(parts["expected"])["Training"]
    return Duration(
        seconds=Span(
            min(totals["low"], totals["expected"]),
            totals["expected"],
            max(totals["high"], totals["expected"]),
        ),
        parts=tuple(parts["expected"]),
        steps=expected.steps,
        tokens=ceil(expected.tokens),
        tokens_per_second=expected.tokens / training if training else 0.0,
        source=speed.source,
        reason="; ".join(filter(None, (speed.reason, rows.reason))),
    )


def measured_efficiency(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    plan: TrainingPlan,
    rows: Rows,
    rates: Rates,
    tokens_per_second: float,
) -> float | None:
    """The share of `rates` that a run has reached: the time that its training takes at `rates`, over the measured time.

    None if its passes are so short that the host may have limited them. Such a run says nothing about the device.
    """
    work = work_of(spec, sizes_of(shape), plan, rows, "expected")
    one = work.training
    seconds = work.tokens / tokens_per_second / one.count
    if seconds < one.layers * LAYER_SECONDS.high:
        return None
    return (one.operations / rates.operations + one.bytes / rates.bytes) / seconds


def _parts(work: Work, sizes: Sizes, speed: Speed, gpus: int, bound: Bound) -> tuple[tuple[str, float], ...]:
    spread = gpus ** SPREAD.of(bound)
    checkpoint = QUANTIZED_BYTES * sizes.linear_weights + 2.0 * sizes.embedding_weights
    generation = min(pass_seconds(work.generation, speed, bound), work.generation_limit)
    return (
        ("Start", START_SECONDS.of(bound)),
        ("Load", checkpoint / STORAGE_BYTES.of(bound)),
        ("Probe", pass_seconds(work.probe, speed, bound)),
        ("Training", pass_seconds(work.training, speed, bound) / spread),
        ("Checkpoints", work.checkpoints * CHECKPOINT_SECONDS.of(bound)),
        (
            "Evaluation",
            pass_seconds(work.evaluation, speed, bound) + pass_seconds(work.selection, speed, bound),
        ),
        ("Answers", generation),
    )


def pass_seconds(passes: Pass, speed: Speed, bound: Bound) -> float:
    """Seconds of all passes of one kind: the device computes and moves bytes, or waits for the host."""
    ideal = passes.operations / speed.rates.operations + passes.bytes / speed.rates.bytes
    launches = passes.layers * LAYER_SECONDS.of(bound) if speed.waits_for_host else 0.0
    return passes.count * max(ideal / speed.efficiency(bound), launches)
