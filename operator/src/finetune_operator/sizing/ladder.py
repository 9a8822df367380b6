"""The right-sizing ladder: ways to run one job, from the fastest to the most frugal.

Every rung keeps the effective batch size of the spec. The order is that of the estimated time for the same tokens.
Values that the user set never change: only an absent `training.microBatchSize`, `training.gradientCheckpointing: Auto`,
the optimizer and the form of the weights are open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, isqrt
from typing import Literal

from finetune_operator.api.plan import DEFAULT_OPTIMIZER, DEFAULT_WEIGHTS, ONE_GPU, Layout, Optimizer, Weights
from finetune_operator.api.spec import Training
from finetune_operator.sizing.memory.terms import Estimate, NotTracedError
from finetune_operator.sizing.memory.training_plan import TrainingPlan

RightSize = Literal["Allow", "Forbid"]
Estimator = Callable[[TrainingPlan], Estimate]
"""Estimates one plan for a fixed model, stack and GPU. Raises NotTracedError if it knows nothing about the plan."""

TOKENS_PER_PASS = 8192
"""Most tokens of a forward pass when a micro-batch above one row is tried.

A linear layer multiplies [tokens, in] by [in, out]. Its operations per byte grow with the tokens up to about the hidden
size (4,096 for a 7B model) and hardly beyond. More tokens then cost memory without more speed.
"""
RECOMPUTING = 4 / 3
"""Time of a step that computes activations twice, as a multiple of one that keeps them.

Public measurements of 7B to 14B models lose 20 to 29 % of their throughput (Hugging Face's documentation on gradient
checkpointing: about 20 %; LoRA runs with and without it: 21 to 29 %). The chosen figure is a quarter.
"""
TOKENS_OF_A_PASS = 512
"""Cost of a forward and a backward pass that does not depend on its tokens, as the time of so many tokens.

Each pass unpacks every matrix, which moves 4.5 bytes for a weight, and starts some ten thousand kernels. A token costs
4 operations for a weight. With 60, 150 and 350 achieved TFLOPS and 0.3, 1.6 and 2.6 TB/s (L4, A100, H100), this is the
time of 400 to 650 tokens of a 7B model.
"""
TOKENS_OF_A_DEQUANTIZED_PASS = 256
"""The same if the weights are in 16 bits already. Unpacking is about half of the cost on such GPUs.

Twice 4.5 bytes for a weight take the time of 450, 210 and 300 tokens on an L4, A100 and H100. Public runs of torchtune
lose 2 to 22 % of their throughput with 4-bit weights.
"""
TOKENS_OF_AN_UPDATE: dict[Optimizer, int] = {"AdamW": 0, "AdamW8Bit": 256, "PagedAdamW8Bit": 384}
"""Cost of an optimizer step beyond that of AdamW in one kernel, as the time of so many tokens.

bitsandbytes updates one tensor after another, and waits for the device after each. An 8B model has 449 trained tensors.
With 50 microseconds for each, this is the time of 50 to 280 tokens of a 7B model (L4, H100). Paged states are also
fetched. The figures are not measured, and hold for the fast GPUs, where they matter.
"""
_PAGED: Optimizer = "PagedAdamW8Bit"
FIXED_MICRO_BATCH = 1
FIXED_CHECKPOINTING = True
"""`resources.rightSize: Forbid` uses these two values for settings that the user left open, on every GPU."""


@dataclass(frozen=True)
class Abilities:
    """The optimizers and the forms of the weights among which the ladder chooses, the fastest first.

    `reason` says why there is one optimizer only.
    `resources.rightSize: Forbid` takes those of `most_frugal` on every GPU.
    """

    optimizers: tuple[Optimizer, ...] = ("AdamW", "AdamW8Bit", "PagedAdamW8Bit")
    reason: str = ""
    weights: tuple[Weights, ...] = ("Dequantized", "Quantized")
    shares_weights: bool = True
    """Whether several GPUs may share the frozen weights if the job leaves it open."""

    @property
    def most_frugal(self) -> Abilities:
        """Those that need the least memory."""
        return Abilities(self.optimizers[-1:], self.reason, self.weights[-1:])


ABILITIES = Abilities()
"""Those of this version's trainer on a GPU."""
OLDER_ABILITIES = Abilities(
    (DEFAULT_OPTIMIZER,), "the trainer image is not known to have others", (DEFAULT_WEIGHTS,)
)
"""Those of a trainer before contract 1.7."""
CPU_ABILITIES = Abilities(
    ("AdamW",), "trainer.device is cpu, and the others save only GPU memory", (DEFAULT_WEIGHTS,)
)


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


def relative_time(plan: TrainingPlan) -> float:
    """Return the estimated time for a token, as a multiple of that in an endless pass without checkpointing."""
    own = TOKENS_OF_A_DEQUANTIZED_PASS if plan.weights == "Dequantized" else TOKENS_OF_A_PASS
    passes = 1 + own / plan.tokens
    update = TOKENS_OF_AN_UPDATE[plan.optimizer] / (plan.tokens * plan.gradient_accumulation)
    return (passes * RECOMPUTING if plan.gradient_checkpointing else passes) + update


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, largest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}, reverse=True))


def micro_batches(
    training: Training, sequence_length: int, right_size: RightSize, ranks: int = 1
) -> tuple[int, ...]:
    """Return the micro-batch sizes to try, largest first; each divides the effective batch size.

    None is larger than the share of one of the `ranks`.
    """
    if training.micro_batch_size is not None:
        return (training.micro_batch_size,)
    if right_size == "Forbid":
        return (FIXED_MICRO_BATCH,)
    share = max(1, training.effective_batch_size // ranks)
    fitting = tuple(
        size
        for size in divisors(training.effective_batch_size)
        if size <= share and size * sequence_length <= TOKENS_PER_PASS
    )
    return fitting or (1,)


def checkpointings(training: Training, right_size: RightSize) -> tuple[bool, ...]:
    """Return the values of gradient checkpointing to try, the faster one first."""
    if training.gradient_checkpointing != "Auto":
        return (training.gradient_checkpointing == "Require",)
    return (FIXED_CHECKPOINTING,) if right_size == "Forbid" else (False, True)


def plans(
    training: Training,
    sequence_length: int,
    right_size: RightSize,
    abilities: Abilities = ABILITIES,
    layout: Layout = ONE_GPU,
) -> tuple[TrainingPlan, ...]:
    """Return all ways to run the job on the GPUs of `layout`."""
    return tuple(
        training_plan(
            training,
            sequence_length,
            size,
            checkpointing=on,
            optimizer=optimizer,
            weights=weights,
            layout=layout,
        )
        for size, on, optimizer, weights in product(
            micro_batches(training, sequence_length, right_size, layout.gpus),
            checkpointings(training, right_size),
            abilities.optimizers,
            abilities.weights,
        )
    )


def training_plan(
    training: Training,
    sequence_length: int,
    micro_batch_size: int,
    *,
    checkpointing: bool,
    optimizer: Optimizer = DEFAULT_OPTIMIZER,
    weights: Weights = DEFAULT_WEIGHTS,
    layout: Layout = ONE_GPU,
) -> TrainingPlan:
    """Return the values of `training` that decide memory, completed by those that sizing may choose.

    The GPUs of `layout` share the rows of a step, and the values are those of the one with the most passes.
    """
    return TrainingPlan(
        sequence_length=sequence_length,
        micro_batch_size=micro_batch_size,
        gradient_accumulation=ceil(training.effective_batch_size / (micro_batch_size * layout.gpus)),
        gradient_checkpointing=checkpointing,
        rank=training.lora.rank,
        target_modules=training.lora.target_modules,
        dropout=training.lora.dropout > 0,
        variant=training.lora.variant,
        optimizer=optimizer,
        weights=weights,
        ranks=layout.gpus,
        parallelism=layout.parallelism,
    )


def rungs(
    training: Training,
    sequence_length: int,
    estimator: Estimator,
    right_size: RightSize,
    abilities: Abilities = ABILITIES,
    layout: Layout = ONE_GPU,
) -> tuple[Rung, ...]:
    """Return the ladder, fastest first. Each rung needs less memory than the one before.

    `sequence_length` is the padded length of the longest row in tokens. If `training.micro_batch_size` is set, it must
    divide the effective batch size, which validation checks. A slower way that saves nothing is not a rung. For example,
    checkpointing with a large micro-batch may need more than a smaller micro-batch without it, and takes longer.

    Paged states count as device memory, because a step uses them there. So they save nothing in the estimate, but they
    leave a GPU that is fuller than estimated. They are the last rung, whose other values are those of the one before.

    A plan of which nothing is known is no rung. Raises NotTracedError if no other is left.
    """
    if right_size == "Forbid":
        abilities = abilities.most_frugal
    resident = tuple(optimizer for optimizer in abilities.optimizers if optimizer != _PAGED)
    considered = replace(abilities, optimizers=resident or abilities.optimizers)
    found = list(_known(plans(training, sequence_length, right_size, considered, layout), estimator))
    ladder: list[Rung] = []
    for rung in sorted(found, key=lambda rung: (relative_time(rung.plan), rung.estimate.device_bytes)):
        if not ladder or rung.estimate.device_bytes < ladder[-1].estimate.device_bytes:
            ladder.append(rung)
    if len(considered.optimizers) < len(abilities.optimizers):
        plan = replace(ladder[-1].plan, optimizer=_PAGED)
        ladder.append(Rung(plan, estimator(plan)))
    return tuple(ladder)


def _known(found: Iterable[TrainingPlan], estimator: Estimator) -> Iterator[Rung]:
    unknown: NotTracedError | None = None
    known = False
    for plan in found:
        try:
            rung = Rung(plan, estimator(plan))
        except NotTracedError as error:
            unknown = error
            continue
        known = True
        yield rung
    if unknown is not None and not known:
        raise unknown
