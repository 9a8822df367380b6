"""The plan of a training run: the values that TRAIN uses, and the reasons for chosen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cuda", "cpu"]
Optimizer = Literal["AdamW", "AdamW8Bit", "PagedAdamW8Bit"]
"""AdamW with two moments for each trained parameter: in 32 bits, in 8 bits, or in 8 bits that can move to the host."""
DEFAULT_OPTIMIZER: Optimizer = "PagedAdamW8Bit"
"""That of a plan that names none, as every plan before contract 1.7."""
Weights = Literal["Quantized", "Dequantized"]
"""The 4-bit weights on the device: packed, or unpacked once to 16 bits."""
DEFAULT_WEIGHTS: Weights = "Quantized"
Parallelism = Literal["DataParallel", "FullyShard"]
"""Each GPU has a replica of the model, or a part of its frozen weights."""
DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Choice:
    """One chosen value, as shown in `status.plan`."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """The GPUs of TRAIN: `per_node` in each of `nodes` pods, and how they share the model."""

    nodes: int = 1
    per_node: int = 1
    parallelism: Parallelism = "DataParallel"

    @property
    def gpus(self) -> int:
        """All GPUs, each of one process."""
        return self.nodes * self.per_node


ONE_GPU = Layout()


@dataclass(frozen=True)
class LearningRate:
    """The peak learning rate; `reason` says why it was chosen, None if the user gave it."""

    value: float
    reason: str | None = None


@dataclass(frozen=True)
class Rung:
    """One way to hold a step of TRAIN in the GPU's memory. All rungs of a job have its effective batch size."""

    micro_batch_size: int
    gradient_checkpointing: bool
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    weights: Weights = DEFAULT_WEIGHTS


@dataclass(frozen=True)
class Plan:
    """The values that TRAIN uses. Exactly one of `epochs` and `maximum_steps` is set.

    `warnings` tell a person what to check before the job runs. `ladder` has the more frugal rungs to take one after
    another if the GPU runs out of memory.
    """

    micro_batch_size: int
    gradient_checkpointing: bool
    epochs: float | None
    maximum_steps: int | None
    choices: tuple[Choice, ...]
    learning_rate: LearningRate
    warnings: tuple[str, ...] = ()
    ladder: tuple[Rung, ...] = ()
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    weights: Weights = DEFAULT_WEIGHTS
    layout: Layout = ONE_GPU
