"""Why a plan has the values that it has."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.api.plan import Choice, Device
from finetune_operator.api.quantities import binary_size
from finetune_operator.api.spec import FineTuneJobSpec, Training
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.ladder import TOKENS_PER_PASS, Rung
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.planning import CPU_CHECKPOINTING_REASON

FORBID_REASON = "resources.rightSize is Forbid: the same on every GPU"


def explain(
    spec: FineTuneJobSpec,
    ladder: Sequence[Rung],
    place: int,
    gpu: Gpu,
    *,
    borderline: bool,
    length_reason: str,
    device: Device,
) -> tuple[Choice, ...]:
    """Each value that was chosen for `ladder[place]` on `gpu`, with its reason; given values are not choices."""
    training, plan = spec.training, ladder[place].plan
    choices = []
    if training.micro_batch_size is None:
        reason = (
            FORBID_REASON
            if spec.resources.right_size == "Forbid"
            else _micro_batch(training, ladder, place, gpu, borderline=borderline)
        )
        choices.append(Choice("microBatchSize", str(plan.micro_batch_size), reason))
    choices.append(
        Choice(
            "gradientAccumulationSteps",
            str(plan.gradient_accumulation),
            f"effectiveBatchSize {training.effective_batch_size} / microBatchSize {plan.micro_batch_size}",
        )
    )
    if training.gradient_checkpointing == "Auto":
        choices.append(_checkpointing(spec, ladder, place, gpu, device, borderline=borderline))
    choices.extend(
        (
            Choice("sequenceLength", str(plan.sequence_length), length_reason),
            Choice("gpu", gpu.product, _gpu(ladder[place], gpu, borderline=borderline)),
        )
    )
    return tuple(choices)


def _micro_batch(
    training: Training, ladder: Sequence[Rung], place: int, gpu: Gpu, *, borderline: bool
) -> str:
    plan, first = ladder[place].plan, ladder[0].plan
    if plan.micro_batch_size < first.micro_batch_size:
        above = next(
            rung for rung in reversed(ladder[:place]) if rung.plan.micro_batch_size > plan.micro_batch_size
        )
        return (
            f"largest divisor of effectiveBatchSize {training.effective_batch_size} that fits: micro-batch "
            f"{above.plan.micro_batch_size} {_too_much(above, gpu)}"
            if not borderline
            else f"needs the least: no micro-batch fits {_of(gpu)} with margin"
        )
    if plan.micro_batch_size == training.effective_batch_size:
        return (
            f"the whole effective batch at once: {_tokens(plan)} of at most {TOKENS_PER_PASS:,} tokens a pass"
        )
    if plan.tokens > TOKENS_PER_PASS:
        return f"one row alone has {_tokens(plan)}, more than the {TOKENS_PER_PASS:,} that keep a GPU busy"
    return (
        f"largest divisor of effectiveBatchSize {training.effective_batch_size} with at most {TOKENS_PER_PASS:,} "
        "tokens a pass; more would cost memory and gain no speed"
    )


def _checkpointing(
    spec: FineTuneJobSpec,
    ladder: Sequence[Rung],
    place: int,
    gpu: Gpu,
    device: Device,
    *,
    borderline: bool,
) -> Choice:
    name, on = "gradientCheckpointing", ladder[place].plan.gradient_checkpointing
    if device == "cpu":
        return Choice(name, "false", CPU_CHECKPOINTING_REASON)
    value = "true" if on else "false"
    if spec.resources.right_size == "Forbid":
        return Choice(name, value, FORBID_REASON)
    if not on:
        fits = "fits without" if not borderline else "would save nothing here"
        return Choice(name, value, f"{fits}, and computing activations once is faster")
    without = next(rung for rung in reversed(ladder[:place]) if not rung.plan.gradient_checkpointing)
    return Choice(
        name,
        value,
        f"without it, micro-batch {without.plan.micro_batch_size} {_too_much(without, gpu)}",
    )


def _gpu(rung: Rung, gpu: Gpu, *, borderline: bool) -> str:
    estimate = rung.estimate
    between = f"{binary_size(estimate.low_bytes)} to {binary_size(estimate.high_bytes)}"
    what = f"needs {binary_size(estimate.device_bytes)} ({between}) of {binary_size(gpu.usable_bytes or 0)}"
    if borderline:
        return f"borderline: {what}, and no other plan or GPU here has more room"
    return f"smallest GPU that fits with margin: {what}"


def _too_much(rung: Rung, gpu: Gpu) -> str:
    """Why a rung was passed over."""
    estimate, usable = rung.estimate, gpu.usable_bytes or 0
    if estimate.device_bytes > usable:
        return f"needs {binary_size(estimate.device_bytes)} of {_of(gpu)}"
    return f"may need {binary_size(estimate.high_bytes)} of {_of(gpu)}"


def _of(gpu: Gpu) -> str:
    return f"the {binary_size(gpu.usable_bytes or 0)} of {gpu.product}"


def _tokens(plan: TrainingPlan) -> str:
    return f"{plan.tokens:,} tokens"
