"""The identity of one stage attempt, as results and progress carry it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """One attempt of one stage: the job's uid, the stage's name in the contract, and the attempt's number."""

    uid: str
    stage: str
    attempt: int
