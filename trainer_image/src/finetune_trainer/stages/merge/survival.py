"""How much of the adapter's update the written weights still have, from sums over their elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.quantization.rounding import RoundedSums

if TYPE_CHECKING:
    from collections.abc import Mapping

SURVIVAL_LIMIT = 0.9
"""Projections below it are worth a warning: the artifact keeps less than nine tenths of what was learned."""


@dataclass(frozen=True)
class Survival:
    """The realized update (written - base) of a tensor against the intended one (exact - base).

    `projection` is <realized, intended> / |intended|^2: 1 if all of it survives, 0 if none does. `relative_error` is
    |realized - intended| / |intended|; it holds the noise of one rounding, too. An update of zero survives wholly.
    """

    projection: float
    relative_error: float

    @classmethod
    def of(cls, sums: RoundedSums) -> Survival:
        """Return the survival of the elements that were summed."""
        if sums.intended == 0:
            return cls(1.0, 0.0)
        return cls(sums.product / sums.intended, math.sqrt(sums.error / sums.intended))


@dataclass(frozen=True)
class SurvivalReport:
    """Survival by the name of each tensor that has an update, and over all of them together."""

    tensors: Mapping[str, Survival]
    total: Survival

    @classmethod
    def of(cls, sums: Mapping[str, RoundedSums]) -> SurvivalReport:
        """Return the report for the sums of each tensor."""
        tensors = {name: Survival.of(part) for name, part in sorted(sums.items())}
        return cls(tensors, Survival.of(sum((sums[name] for name in tensors), RoundedSums())))

    def weakest(self) -> tuple[str, Survival] | None:
        """Return name and survival of the tensor with the smallest projection; None if no tensor has an update."""
        return min(self.tensors.items(), key=lambda item: item[1].projection, default=None)

    def warning(self) -> str | None:
        """Describe a loss of the update that a person should know of; None if enough of it survives."""
        weakest = self.weakest()
        if weakest is None or min(self.total.projection, weakest[1].projection) >= SURVIVAL_LIMIT:
            return None
        return (
            f"the merged weights should keep at least {SURVIVAL_LIMIT:.0%} of the adapter's update by projection, found "
            f"{self.total.projection:.1%} over all tensors and {weakest[1].projection:.1%} in {weakest[0]}; rounding to "
            "the type of the artifact loses the rest: publish the adapter with BaseAsTrained, or raise "
            "training.learningRate"
        )
