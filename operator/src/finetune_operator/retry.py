"""When a failed or interrupted stage is tried again."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.reasons import ReasonClass

FIRST_DELAY = timedelta(seconds=10)
LONGEST_DELAY = timedelta(minutes=5)


def backoff(count: int) -> timedelta:
    """Delay before the next attempt after `count` failures (at least 1): 10 s, 20 s, 40 s ... at most 5 min."""
    exponent = min(max(count, 1) - 1, 16)
    return min(FIRST_DELAY * (1 << exponent), LONGEST_DELAY)


def delay_after(kind: ReasonClass, *, failures: int, interruptions: int, retries: int) -> timedelta | None:
    """How long to wait before the next attempt; None to give up.

    `failures` and `interruptions` count this stage's ends so far, this one included. An interruption uses up no retry;
    the first goes on at once, further ones back off so that a pod that is always killed does not spin.
    """
    if kind is ReasonClass.INTERRUPTED:
        return timedelta() if interruptions <= 1 else backoff(interruptions - 1)
    if kind is ReasonClass.RETRYABLE and failures <= retries:
        return backoff(failures)
    return None
