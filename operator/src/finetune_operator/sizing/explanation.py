"""Reasons for the values of a plan, as `status.plan` and `finetune plan` show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune_operator.api.plan import Choice, Device
from finetune_operator.api.quantities import binary_size
from finetune_operator.api.spec import FineTuneJobSpec, Training
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.ladder import RECOMPUTING, TOKENS_PER_PASS, Abilities, Rung, relative_time
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.planning import CPU_CHECKPOINTING_REASON

FORBID_REASON = "resources.rightSize is Forbid, so the value is the same on every GPU"


NOT_TRACED_REASON = "the trace of the model has no other way"


def explain(
    spec: FineTuneJobSpec,
    ladder: Sequence[Rung],
    index: int,
    gpu: Gpu,
    *,
    borderline: bool,
    length_reason: str,
    device: Device,
    abilities: Abilities,
) -> tuple[Choice, ...]:
    """Return each value chosen for `ladder[index]` on `gpu` with its reason; values that the user set are not choices.

    `abilities` are those among which the ladder chose.
    """
    training, plan = spec.training, ladder[index].plan
    choices = []
    if training.micro_batch_size is None:
        reason = (
            FORBID_REASON
            if spec.resources.right_size == "Forbid"
            else _micro_batch(training, ladder, index, gpu, borderline=borderline)
        )
        choices.append(Choice("microBatchSize", str(plan.micro_batch_size), reason))
    choices.append(
        Choice(
            "gradientAccumulationSteps",
            str(plan.gradient_accumulation),
            f"effectiveBatchSize {training.effective_batch_size} / microBatchSize {plan.micro_batch_size}"
            + (f" / {plan.ranks} GPUs" if plan.ranks > 1 else ""),
        )
    )
    if training.gradient_checkpointing == "Auto":
        choices.append(_checkpointing(spec, ladder, index, gpu, device, borderline=borderline))
    choices.extend(_optimizer(spec, ladder, index, gpu, abilities))
    choices.extend(_weights(spec, ladder, index, gpu, abilities))
    choices.extend(
        (
            Choice("sequenceLength", str(plan.sequence_length), length_reason),
            Choice("gpu", gpu.product, _gpu(ladder[index], gpu, borderline=borderline)),
        )
    )
    return tuple(choices)


def _micro_batch(
    training: Training, ladder: Sequence[Rung], index: int, gpu: Gpu, *, borderline: bool
) -> str:
    plan, first = ladder[index].plan, ladder[0].plan
    if plan.micro_batch_size < first.micro_batch_size:
        if borderline:
            return f"needs the least memory, and no micro-batch fits {gpu.product} with margin"
        above = _faster(ladder, index, plan)
        return (
            f"divisor of effectiveBatchSize {training.effective_batch_size}, the fastest that fits: "
            f"{_named(above, plan)} {_shortage(above, gpu)}"
            f"{_instead_of_checkpointing(ladder, index)}"
        )
    if plan.micro_batch_size == training.effective_batch_size:
        return f"the whole effective batch in one pass: {_tokens(plan)} of at most {TOKENS_PER_PASS:,}"
    if plan.ranks > 1 and plan.micro_batch_size == training.effective_batch_size // plan.ranks:
        return f"the rows of one GPU in one pass: {_tokens(plan)} of at most {TOKENS_PER_PASS:,}"
    if plan.tokens > TOKENS_PER_PASS:
        return f"a single row has {_tokens(plan)}, more than the {TOKENS_PER_PASS:,} that keep a GPU busy"
    return (
        f"largest divisor of effectiveBatchSize {training.effective_batch_size} with at most {TOKENS_PER_PASS:,} "
        "tokens per pass; more tokens cost memory without more speed"
    )


def _checkpointing(
    spec: FineTuneJobSpec,
    ladder: Sequence[Rung],
    index: int,
    gpu: Gpu,
    device: Device,
    *,
    borderline: bool,
) -> Choice:
    name, on = "gradientCheckpointing", ladder[index].plan.gradient_checkpointing
    if device == "cpu":
        return Choice(name, "false", CPU_CHECKPOINTING_REASON)
    value = "true" if on else "false"
    if spec.resources.right_size == "Forbid":
        return Choice(name, value, FORBID_REASON)
    if not on:
        why = "would save nothing here" if borderline else "the job fits without it"
        return Choice(
            name, value, f"{why}, and computing activations twice takes {RECOMPUTING - 1:.0%} more time"
        )
    without = next((rung for rung in reversed(ladder[:index]) if not rung.plan.gradient_checkpointing), None)
    if without is None:
        return Choice(name, value, NOT_TRACED_REASON)
    return Choice(
        name,
        value,
        f"without it, {_named(without, ladder[index].plan)} {_shortage(without, gpu)}",
    )


def _optimizer(
    spec: FineTuneJobSpec, ladder: Sequence[Rung], index: int, gpu: Gpu, abilities: Abilities
) -> Iterator[Choice]:
    """Yield the optimizer with its reason, if there is one to give."""
    optimizer = ladder[index].plan.optimizer
    if len(abilities.optimizers) == 1:
        reason = abilities.reason
    elif spec.resources.right_size == "Forbid":
        reason = FORBID_REASON
    elif optimizer == "AdamW":
        reason = "the fastest, and the job fits with its states of 8 bytes for each trained parameter"
    elif optimizer == "AdamW8Bit":
        fast = next(rung for rung in reversed(ladder[:index]) if rung.plan.optimizer == "AdamW")
        reason = f"AdamW with {_named(fast, ladder[index].plan)} {_shortage(fast, gpu)}"
    else:
        reason = f"its states can leave {gpu.product} while it is full, and no plan leaves more room"
    if reason:
        yield Choice("optimizer", optimizer, reason)


def _weights(
    spec: FineTuneJobSpec, ladder: Sequence[Rung], index: int, gpu: Gpu, abilities: Abilities
) -> Iterator[Choice]:
    """Yield the form of the weights with its reason, if there was a choice."""
    weights = ladder[index].plan.weights
    if len(abilities.weights) == 1:
        return
    if spec.resources.right_size == "Forbid":
        reason = FORBID_REASON
    elif weights == "Dequantized":
        reason = "the job fits with its 4-bit weights in 16 bits, so that no pass has to unpack them"
    else:
        unpacked = next(
            (rung for rung in reversed(ladder[:index]) if rung.plan.weights == "Dequantized"), None
        )
        reason = (
            NOT_TRACED_REASON
            if unpacked is None
            else f"{_named(unpacked, ladder[index].plan)} {_shortage(unpacked, gpu)}"
        )
    yield Choice("weights", weights, reason)


def _faster(ladder: Sequence[Rung], index: int, plan: TrainingPlan) -> Rung:
    """Return the rung with the next larger micro-batch, and the same checkpointing and weights if there is one."""
    larger = [rung for rung in ladder[:index] if rung.plan.micro_batch_size > plan.micro_batch_size]
    same = [rung for rung in larger if rung.plan.gradient_checkpointing == plan.gradient_checkpointing]
    alike = [rung for rung in same if rung.plan.weights == plan.weights]
    return (alike or same or larger)[-1]


def _named(rung: Rung, plan: TrainingPlan) -> str:
    """Name the micro-batch of a rung, and its weights if those of `plan` are others."""
    others = "" if rung.plan.weights == plan.weights else f" with {rung.plan.weights.lower()} weights"
    return f"micro-batch {rung.plan.micro_batch_size}{others}"


def _instead_of_checkpointing(ladder: Sequence[Rung], index: int) -> str:
    """Say that a small micro-batch without checkpointing is faster than a larger one with it."""
    plan = ladder[index].plan
    larger = [
        rung.plan
        for rung in ladder[index + 1 :]
        if rung.plan.gradient_checkpointing and rung.plan.micro_batch_size > plan.micro_batch_size
    ]
    if plan.gradient_checkpointing or not larger:
        return ""
    more = relative_time(larger[0]) / relative_time(plan) - 1
    return (
        f", and micro-batch {larger[0].micro_batch_size} with checkpointing would take {more:.0%} more time"
    )


def _gpu(rung: Rung, gpu: Gpu, *, borderline: bool) -> str:
    estimate = rung.estimate
    between = f"{binary_size(estimate.low_bytes)} to {binary_size(estimate.high_bytes)}"
    what = f"needs {binary_size(estimate.device_bytes)} ({between}) of {binary_size(gpu.usable_bytes or 0)}"
    if borderline:
        return f"borderline: {what}, and no other plan or GPU here leaves more room"
    return f"smallest GPU that fits with margin: {what}"


def _shortage(rung: Rung, gpu: Gpu) -> str:
    """Say why a rung does not fit `gpu`."""
    estimate, usable = rung.estimate, gpu.usable_bytes or 0
    if estimate.device_bytes > usable:
        need = f"needs {binary_size(estimate.device_bytes)}"
    else:
        need = f"may need {binary_size(estimate.high_bytes)}"
    return f"{need}, but {gpu.product} has {binary_size(usable)}"


def _tokens(plan: TrainingPlan) -> str:
    return f"{plan.tokens:,} tokens"
