"""Chooses the values that the user left open, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.api.plan import (
    DEFAULT_EPOCHS,
    DEFAULT_OPTIMIZER,
    ONE_GPU,
    Choice,
    Device,
    Layout,
    LearningRate,
    Plan,
    Rung,
)
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.ladder import training_plan
from finetune_operator.sizing.learning_rate import PROVISIONAL, choose_learning_rate, warnings
from finetune_operator.sizing.memory.training_plan import TrainingPlan

MAXIMUM_RUNGS = 8
"""Most rungs of a plan's ladder. A rung that fails costs the time to load the model and to probe."""
CPU_CHECKPOINTING_REASON = "saves only GPU memory, and trainer.device is cpu"


def make_plan(
    spec: FineTuneJobSpec,
    device: Device,
    decided: TrainingPlan | None = None,
    choices: tuple[Choice, ...] = (),
    learning_rate: LearningRate | None = None,
    ladder: Sequence[Rung] = (),
    layout: Layout = ONE_GPU,
) -> Plan:
    """Choose what `spec` leaves open for a run on `device`.

    `decided`, `choices` and `ladder` come from sizing for a GPU (sizing.decision.Feasible). Without them, the plan is the
    one that needs the least memory. That is so on a local machine, and before the data is known. `learning_rate` is the
    choice of learning_rate.choose_learning_rate for this model and data; None before both are known.
    """
    training = spec.training
    if decided is None:
        decided, choices = _frugal(spec, device)
        if training.gradient_checkpointing == "Auto" and not decided.gradient_checkpointing:
            ladder = (
                Rung(decided.micro_batch_size, gradient_checkpointing=True, optimizer=decided.optimizer),
            )
    epochs = training.epochs
    if epochs is None and training.maximum_steps is None:
        epochs = DEFAULT_EPOCHS
        choices = (*choices, Choice("epochs", "3", "neither epochs nor maximumSteps is set"))
    rate = learning_rate or choose_learning_rate(training, None, None)
    if rate.reason is not None and rate is not PROVISIONAL:
        choices = (*choices, learning_rate_choice(rate))
    return Plan(
        micro_batch_size=decided.micro_batch_size,
        gradient_checkpointing=decided.gradient_checkpointing,
        epochs=epochs,
        maximum_steps=training.maximum_steps,
        choices=choices,
        learning_rate=rate,
        optimizer=decided.optimizer,
        weights=decided.weights,
        warnings=warnings(training),
        ladder=tuple(ladder),
        layout=layout,
    )


def learning_rate_choice(rate: LearningRate) -> Choice:
    """Return a chosen rate as `status.plan` and `finetune plan` show it."""
    return Choice("learningRate", rate_text(rate.value), rate.reason or "")


def rate_text(rate: float) -> str:
    """Return the shortest text that parses to the same number."""
    return repr(rate)


def frugal_rungs(plans: Sequence[TrainingPlan]) -> tuple[Rung, ...]:
    """Return the rungs of `plans`, at most MAXIMUM_RUNGS of them: evenly spread, and always with the last."""
    count = min(len(plans), MAXIMUM_RUNGS)
    chosen = [plans[(number * len(plans)) // count - 1] for number in range(1, count + 1)]
    return tuple(
        Rung(plan.micro_batch_size, plan.gradient_checkpointing, plan.optimizer, plan.weights)
        for plan in chosen
    )


def _frugal(spec: FineTuneJobSpec, device: Device) -> tuple[TrainingPlan, tuple[Choice, ...]]:
    """Return the plan that needs the least memory, with its choices."""
    training = spec.training
    choices: list[Choice] = []
    micro_batch_size = training.micro_batch_size
    if micro_batch_size is None:
        micro_batch_size = 1
        choices.append(
            Choice(
                "microBatchSize",
                "1",
                "needs the least memory and does not change the effective batch size",
            )
        )
    checkpointing = training.gradient_checkpointing == "Require"
    if training.gradient_checkpointing == "Auto":
        checkpointing = device == "cuda"
        reason = (
            "saves GPU memory, but activations are computed twice"
            if checkpointing
            else CPU_CHECKPOINTING_REASON
        )
        choices.append(Choice("gradientCheckpointing", "true" if checkpointing else "false", reason))
    plan = training_plan(
        training,
        training.maximum_length,
        micro_batch_size,
        checkpointing=checkpointing,
        optimizer="AdamW" if device == "cpu" else DEFAULT_OPTIMIZER,
    )
    return plan, tuple(choices)
