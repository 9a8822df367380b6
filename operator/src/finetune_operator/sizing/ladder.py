"""The right-sizing ladder: ways to run one job, from the fastest to the one that needs the least memory.

Every rung has the effective batch size that the user asked for. What the user gave is never changed: only an absent
`training.microBatchSize` and `training.gradientCheckpointing: Auto` are free.
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
Needs = Callable[[TrainingPlan], Estimate]
"""Estimates one plan for the model, the stack and the GPU in question."""

TOKENS_PER_PASS = 8192
"""Tokens of a forward pass above which a larger micro-batch is not tried.

A linear layer multiplies [tokens, in] by [in, out]; its operations per byte grow with the tokens until about the
hidden size (4,096 for a 7B model) and hardly beyond. More tokens then cost memory and gain no speed.
"""
FIXED_MICRO_BATCH = 1
FIXED_CHECKPOINTING = True
"""What `resources.rightSize: Forbid` uses for values that the user left open: known beforehand on any GPU."""


@dataclass(frozen=True)
class Rung:
    """One way to run the job and what it needs."""

    plan: TrainingPlan
    estimate: Estimate

    def fits(self, usable_bytes: int) -> bool:
        """Whether the estimate itself fits."""
        return self.estimate.device_bytes <= usable_bytes

    def fits_with_margin(self, usable_bytes: int) -> bool:
        """Whether the upper end of the estimate's interval fits as well."""
        return self.estimate.high_bytes <= usable_bytes


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, largest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}, reverse=True))


def micro_batches(training: Training, sequence_length: int, right_size: RightSize) -> tuple[int, ...]:
    """Micro-batch sizes to try, largest first; each divides the effective batch size."""
    if training.micro_batch_size is not None:
        return (training.micro_batch_size,)
    if right_size == "Forbid":
        return (FIXED_MICRO_BATCH,)
    fitting = tuple(
        size for size in divisors(training.effective_batch_size) if size * sequence_length <= TOKENS_PER_PASS
    )
    return fitting or (1,)


def checkpointings(training: Training, right_size: RightSize) -> tuple[bool, ...]:
    """Whether gradients are checkpointed, the faster one first."""
    if training.gradient_checkpointing != "Auto":
        return (training.gradient_checkpointing == "Require",)
    return (FIXED_CHECKPOINTING,) if right_size == "Forbid" else (False, True)


def plans(training: Training, sequence_length: int, right_size: RightSize) -> tuple[TrainingPlan, ...]:
    """Ways to run the job, fastest first: checkpointing is given up before the micro-batch is made smaller."""
    largest, *smaller = micro_batches(training, sequence_length, right_size)
    without_or_with = checkpointings(training, right_size)
    steps = [(largest, checkpointing) for checkpointing in without_or_with]
    # Without checkpointing comes last: `rungs` keeps it only where checkpointing saves nothing, as in a tiny model.
    steps += [(size, checkpointing) for size in smaller for checkpointing in reversed(without_or_with)]
    return tuple(training_plan(training, sequence_length, size, checkpointing=on) for size, on in steps)


def training_plan(
    training: Training, sequence_length: int, micro_batch_size: int, *, checkpointing: bool
) -> TrainingPlan:
    """The values of `training` that decide memory, with the two that may be chosen."""
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


def rungs(training: Training, sequence_length: int, needs: Needs, right_size: RightSize) -> tuple[Rung, ...]:
    """The ladder: each rung needs less memory than the one before.

    `sequence_length` is the padded length of the longest row in tokens; `training.micro_batch_size`, where given,
    must divide the effective batch size (checks.check). A slower way that would save nothing is no rung: of a model
    of one layer, checkpointing keeps as much as it drops.
    """
    ladder: list[Rung] = []
    for plan in plans(training, sequence_length, right_size):
        rung = Rung(plan, needs(plan))
        if not ladder or rung.estimate.device_bytes < ladder[-1].estimate.device_bytes:
            ladder.append(rung)
    return tuple(ladder)
