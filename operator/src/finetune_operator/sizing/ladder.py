"""The right-sizing ladder: ways to run one job, from the fastest to the most frugal.

Every rung keeps the effective batch size of the spec. Values that the user set never change: only an absent
`training.microBatchSize` and `training.gradientCheckpointing: Auto` are open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from finetune_operator.api.spec import Training
from finetune_operator.sizing.memory.terms import Estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan

RightSize = Literal["Allow", "Forbid"]
Estimator = Callable[[TrainingPlan], Estimate]
"""Estimates one plan for a fixed model, stack and GPU."""

TOKENS_PER_PASS = 8192
"""Most tokens of a forward pass when a micro-batch above one row is tried.

A linear layer multiplies [tokens, in] by [in, out]. Its operations per byte grow with the tokens up to about the hidden
size (4,096 for a 7B model) and hardly beyond. More tokens then cost memory without more speed.
"""
FIXED_MICRO_BATCH = 1
FIXED_CHECKPOINTING = True
"""`resources.rightSize: Forbid` uses these two values for settings that the user left open, on every GPU."""


@dataclass(frozen=True)
class Rung:
    """One way to run the job, with its estimated memory."""

    plan: TrainingPlan
    estimate: Estimate

    def fits(self, usable_bytes: int) -> bool:
        """Return whether the estimate itself fits."""
        return self.estimate.device_bytes <= usable_bytes

    def fits_with_margin(self, usable_bytes: int) -> bool:
        """Return whether the upper end of the estimate's interval fits as well."""
        return self.estimate.high_bytes <= usable_bytes


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, largest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}, reverse=True))


def micro_batches(training: Training, sequence_length: int, right_size: RightSize) -> tuple[int, ...]:
    """Return the micro-batch sizes to try, largest first; each divides the effective batch size."""
    if training.micro_batch_size is not None:
        return (training.micro_batch_size,)
    if right_size == "Forbid":
        return (FIXED_MICRO_BATCH,)
    fitting = tuple(
        size for size in divisors(training.effective_batch_size) if size * sequence_length <= TOKENS_PER_PASS
    )
    return fitting or (1,)


def checkpointings(training: Training, right_size: RightSize) -> tuple[bool, ...]:
    """Return the values of gradient checkpointing to try, the faster one first."""
    if training.gradient_checkpointing != "Auto":
        return (training.gradient_checkpointing == "Require",)
    return (FIXED_CHECKPOINTING,) if right_size == "Forbid" else (False, True)


def plans(training: Training, sequence_length: int, right_size: RightSize) -> tuple[TrainingPlan, ...]:
    """Return ways to run the job, fastest first: checkpointing is turned on before the micro-batch shrinks."""
    largest, *smaller = micro_batches(training, sequence_length, right_size)
    without_or_with = checkpointings(training, right_size)
    steps = [(largest, checkpointing) for checkpointing in without_or_with]
    # Without checkpointing comes last: `rungs` keeps it only if checkpointing saves nothing, as in a tiny model.
    steps += [(size, checkpointing) for size in smaller for checkpointing in reversed(without_or_with)]
    return tuple(training_plan(training, sequence_length, size, checkpointing=on) for size, on in steps)


def training_plan(
    training: Training, sequence_length: int, micro_batch_size: int, *, checkpointing: bool
) -> TrainingPlan:
    """Return the values of `training` that decide memory, completed by the two that sizing may choose."""
    return TrainingPlan(
        sequence_length=sequence_length,
        micro_batch_size=micro_batch_size,
        gradient_accumulation=training.effective_batch_size // micro_batch_size,
        gradient_checkpointing=checkpointing,
        rank=training.lora.rank,
        target_modules=training.lora.target_modules,
        dropout=training.lora.dropout > 0,
        variant=training.lora.variant,
    )


def rungs(
    training: Training, sequence_length: int, estimator: Estimator, right_size: RightSize
) -> tuple[Rung, ...]:
    """Return the ladder, in which each rung needs less memory than the one before.

    `sequence_length` is the padded length of the longest row in tokens. If `training.micro_batch_size` is set, it must
    divide the effective batch size, which validation checks. A slower way that saves nothing is not a rung: in a model
    of one layer, checkpointing keeps as much as it frees.
    """
    ladder: list[Rung] = []
    for plan in plans(training, sequence_length, right_size):
        rung = Rung(plan, estimator(plan))
        if not ladder or rung.estimate.device_bytes < ladder[-1].estimate.device_bytes:
            ladder.append(rung)
    return tuple(ladder)
