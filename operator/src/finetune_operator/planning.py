"""Values that the operator chooses where the user left them open, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_operator.model import FineTuneJobSpec

Device = Literal["cuda", "cpu"]

DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Choice:
    """One chosen value, as shown in `status.plan`."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What TRAIN will use. Exactly one of `epochs` and `maximum_steps` is set."""

    micro_batch_size: int
    gradient_checkpointing: bool
    epochs: float | None
    maximum_steps: int | None
    choices: tuple[Choice, ...]


def make_plan(spec: FineTuneJobSpec, device: Device) -> Plan:
    """Choose what `spec` leaves open for a run on `device`."""
    training = spec.training
    choices: list[Choice] = []

    micro_batch_size = training.micro_batch_size
    if micro_batch_size is None:
        micro_batch_size = 1
        choices.append(
            Choice(
                "microBatchSize",
                "1",
                "needs the least memory; the effective batch size is the same either way",
            )
        )

    if training.gradient_checkpointing == "Auto":
        gradient_checkpointing = device == "cuda"
        reason = (
            "saves GPU memory at the price of recomputing activations"
            if gradient_checkpointing
            else "saves GPU memory only, and trainer.device is cpu"
        )
        choices.append(Choice("gradientCheckpointing", "true" if gradient_checkpointing else "false", reason))
    else:
        gradient_checkpointing = training.gradient_checkpointing == "Require"

    epochs = training.epochs
    if epochs is None and training.maximum_steps is None:
        epochs = DEFAULT_EPOCHS
        choices.append(Choice("epochs", "3", "neither epochs nor maximumSteps is given"))

    return Plan(
        micro_batch_size=micro_batch_size,
        gradient_checkpointing=gradient_checkpointing,
        epochs=epochs,
        maximum_steps=training.maximum_steps,
        choices=tuple(choices),
    )
