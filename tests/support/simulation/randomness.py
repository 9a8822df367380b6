"""Random numbers of one seed: every part of a life has a stream of its own, so that one part never disturbs another."""

from __future__ import annotations

import random


def stream(part: str, seed: int) -> random.Random:
    """The random numbers of one part of the life of this seed, equal in every run."""
    return random.Random(f"{part} {seed}")  # noqa: S311 -- a simulation, not a secret
