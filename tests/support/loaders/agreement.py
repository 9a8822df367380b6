"""Compares greedy answers of two programs that compute the same function with other rounding.

Where two tokens are almost equally probable, rounding decides which is first. So an answer differs only if the other token
comes at a place where the reference preferred its own by more than the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Answer:
    """A greedy answer, and for each token the lead of its logit over the next best, and the next best token."""

    tokens: Sequence[int]
    leads: Sequence[float]
    rivals: Sequence[int]


def lead_at_difference(reference: Answer, found: Sequence[int]) -> float | None:
    """Return the reference's lead at the first token that differs; None if the answers are equal.

    The lead is infinite if the found answer goes on behind the reference's end, because a stop token is missing.
    """
    for place, (one, other) in enumerate(zip_longest(reference.tokens, found)):
        if one != other:
            return reference.leads[place] if place < len(reference.leads) else math.inf
    return None


def differences(reference: Sequence[Answer], found: Sequence[Sequence[int]], noise: float) -> list[int]:
    """Return the numbers of the prompts that get another answer, for a reason other than rounding.

    `noise` is by how much rounding can change a lead.
    """
    leads = [lead_at_difference(one, other) for one, other in zip(reference, found, strict=True)]
    return [number for number, lead in enumerate(leads) if lead is not None and lead > noise]


def equal_answers(reference: Sequence[Answer], found: Sequence[Sequence[int]]) -> int:
    """Count the prompts that get the same answer, token by token."""
    return sum(lead_at_difference(one, other) is None for one, other in zip(reference, found, strict=True))


def decided_share(reference: Sequence[Answer], noise: float) -> float:
    """Return which part of the reference's tokens, from 0 to 1, leads by more than the noise, so that rounding cannot change it."""
    leads = [lead for one in reference for lead in one.leads]
    return sum(lead > noise for lead in leads) / len(leads)
