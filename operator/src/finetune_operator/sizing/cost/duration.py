"""The time that TRAIN holds its GPUs: low, expected and high."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.exchange import GUESSED_LINKS, Links, answer_bytes, exchange_of
from finetune_operator.sizing.cost.rates import Rates
from finetune_operator.sizing.cost.speeds import Speed
from finetune_operator.sizing.cost.work import (
    QUANTIZED_BYTES,
    Pass,
    Rows,
    Sizes,
    Span,
    Work,
    sizes_of,
    work_of,
)
from finetune_operator.sizing.hosts import adapter_parameters
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
MAXIMUM_SECONDS = 1e11
"""Three thousand years. A trainer may report any number of rows, and the status has bounds."""


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
    nodes: int = 1,
    links: Links = GUESSED_LINKS,
) -> Duration:
    """Estimate the time of TRAIN with `plan` on its GPUs of this speed, in so many nodes.

    What the GPUs exchange over `links` adds to their work, as if they computed nothing meanwhile. Only for the lower bound,
    they compute and exchange at the same time.
    """
    sizes = sizes_of(shape)
    works = {bound: work_of(spec, sizes, plan, rows, bound) for bound in BOUNDS}
    adapter = adapter_parameters(shape, plan.rank, plan.target_modules)
    parts = {
        bound: _with_exchange(
            _parts(works[bound], sizes, speed, bound),
            works[bound],
            sizes,
            plan,
            adapter,
            links.speed(nodes).of(bound),
            overlaps=bound == "low",
        )
        for bound in BOUNDS
    }
    totals = {
        bound: min(MAXIMUM_SECONDS, sum(seconds for _, seconds in found)) for bound, found in parts.items()
    }
    expected = works["expected"]
    named = dict(parts["expected"])
    training = named["Training"] + named.get("Exchange", 0.0)
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
        reason="; ".join(
            filter(None, (speed.reason, rows.reason, links.reason(nodes) if plan.ranks > 1 else ""))
        ),
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


def _with_exchange(
    parts: tuple[tuple[str, float], ...],
    work: Work,
    sizes: Sizes,
    plan: TrainingPlan,
    adapter: int,
    bytes_per_second: float,
    *,
    overlaps: bool,
) -> tuple[tuple[str, float], ...]:
    """`parts` with the time for which GPUs exchange and do not compute; `Exchange` is that of the training."""
    if plan.ranks == 1:
        return parts
    found = exchange_of(work, sizes, plan, adapter)
    seconds = dict(parts)
    training = found.training / bytes_per_second
    exchange = max(0.0, training - seconds["Training"]) if overlaps else training
    others = 0.0 if overlaps else found.others / bytes_per_second
    answers = seconds["Answers"] + answer_bytes(work, sizes, plan) / bytes_per_second
    # The trainer ends the answers after its own limit, whatever they wait for.
    seconds["Answers"] = min(answers, max(seconds["Answers"], work.generation_limit))
    seconds["Evaluation"] += others
    return (*seconds.items(), ("Exchange", exchange))


def _parts(work: Work, sizes: Sizes, speed: Speed, bound: Bound) -> tuple[tuple[str, float], ...]:
    checkpoint = QUANTIZED_BYTES * sizes.linear_weights + 2.0 * sizes.embedding_weights
    generation = min(pass_seconds(work.generation, speed, bound), work.generation_limit)
    return (
        ("Start", START_SECONDS.of(bound)),
        ("Load", checkpoint / STORAGE_BYTES.of(bound)),
        ("Probe", pass_seconds(work.probe, speed, bound)),
        ("Training", pass_seconds(work.training, speed, bound)),
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
