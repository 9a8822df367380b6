"""Finds a rank that is slower than the others: all wait for it in every step."""

from __future__ import annotations

import logging
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)

STEPS = 20
"""Steps of a judgment. Rows are shared evenly, so in so many steps only the speed of a rank differs."""
RATIO = 1.5
LEAST_SECONDS = 0.05
"""A smaller loss of time per step says more about the scheduler of a small machine than about a rank."""


def slow_ranks(steps: Sequence[Sequence[float]]) -> dict[int, float]:
    """Return how many times as long as the others each slow rank takes, from the seconds of each rank in some steps."""
    if not steps or len(steps[0]) < 2:
        return {}
    ranks = [median(seconds) for seconds in zip(*steps, strict=True)]
    found = {}
    for rank, seconds in enumerate(ranks):
        others = median(ranks[:rank] + ranks[rank + 1 :])
        if others > 0 and seconds >= RATIO * others and seconds - others >= LEAST_SECONDS:
            found[rank] = seconds / others
    return found


class Stragglers:
    """Logs slow ranks of one training when they change."""

    def __init__(self) -> None:
        self._steps: list[Sequence[float]] = []
        self._known: set[int] = set()

    def add(self, seconds: Sequence[float]) -> None:
        """Add a step: the seconds that each rank needed for its own passes."""
        self._steps.append(seconds)
        if len(self._steps) < STEPS:
            return
        found = slow_ranks(self._steps)
        self._steps.clear()
        for rank in sorted(found.keys() - self._known):
            _log.warning(
                "rank %d takes %.1f times as long as the other ranks, and all wait for it; check its device and what else "
                "runs there",
                rank,
                found[rank],
            )
        self._known = set(found)
