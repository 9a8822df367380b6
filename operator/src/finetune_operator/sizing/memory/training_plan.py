"""The values of a training run from which its memory is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_operator.api.plan import DEFAULT_OPTIMIZER, DEFAULT_WEIGHTS, Optimizer, Parallelism, Weights

TargetModules = Literal["AllLinear", "AttentionOnly"]
Variant = Literal["Standard", "RankStabilized", "DoRA"]


@dataclass(frozen=True)
class TrainingPlan:
    """The values of one run that decide its memory.

    `sequence_length` is the padded length of the longest row in tokens. `micro_batch_size` is the rows of one forward
    pass, and `gradient_accumulation` the forward passes of one optimizer step. A stack profile that names an optimizer
    comes before `optimizer`. `weights` says if the 4-bit weights are packed. `ranks` is the number of GPUs that share the rows
    of a step, and `parallelism` how they share the model; the other values are those of one of them.
    """

    sequence_length: int
    micro_batch_size: int = 1
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = True
    rank: int = 16
    target_modules: TargetModules = "AllLinear"
    dropout: bool = False
    variant: Variant = "Standard"
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    weights: Weights = DEFAULT_WEIGHTS
    ranks: int = 1
    parallelism: Parallelism = "DataParallel"

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass, padding included."""
        return self.sequence_length * self.micro_batch_size

    @property
    def effective_batch_size(self) -> int:
        """Rows of one optimizer step, at most."""
        return self.micro_batch_size * self.gradient_accumulation * self.ranks
