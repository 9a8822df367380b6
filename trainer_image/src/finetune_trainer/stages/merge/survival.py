"""How much of the adapter's update the written weights still have, from sums over their elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.quantization.rounding import RoundedSums

if TYPE_CHECKING:
    from collections.abc import Mapping


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

    def numbers(self) -> dict[str, Any]:
        """Return the members of the result that tell of survival; empty if no tensor has an update."""
        weakest = self.weakest()
        if weakest is None:
            return {}
        name, survival = weakest
        return {
            "surviving_update": self.total.projection,
            "weakest_tensor": name,
            "weakest_survival": survival.projection,
        }

    def pairs(self) -> dict[str, tuple[float, float]]:
        """Return (projection, relative error) of each tensor, for the manifest."""
        return {name: (part.projection, part.relative_error) for name, part in self.tensors.items()}
