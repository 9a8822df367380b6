"""When a failed or interrupted stage is tried again."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.reasons import ReasonClass

FIRST_DELAY = timedelta(seconds=10)
LONGEST_DELAY = timedelta(minutes=5)
MANY_INTERRUPTIONS = 15
"""Of the 20 attempts that status remembers."""


def backoff(count: int) -> timedelta:
    """Delay before the next attempt after `count` failures (at least 1): 10 s, 20 s, 40 s ... at most 5 min."""
    exponent = min(max(count, 1) - 1, 16)
    return min(FIRST_DELAY * (1 << exponent), LONGEST_DELAY)


def delay_after(
    kind: ReasonClass,
    *,
    failures: int,
    interruptions: int,
    retries: int,
    ran: timedelta,
    may_grow: bool = False,
) -> timedelta | None:
    """How long to wait before the next attempt; None to give up.

    `failures` and `interruptions` count this stage's ends so far, this one included; `ran` is how long the attempt
    was there. An interruption uses up no retry. The first goes on at once; after that an attempt starts no sooner
    than 10 s after the one before it, so that a pod that is always killed does not spin, and after many
    interruptions no sooner than 5 min. `may_grow` says that the next attempt gets more of what this one lacked
    (sizing.hosts.may_retry_with_more): it follows after 10 s and uses up no retry.
    """
    if may_grow:
        return FIRST_DELAY
    if kind is ReasonClass.INTERRUPTED:
        if interruptions <= 1:
            return timedelta()
        interval = FIRST_DELAY if interruptions < MANY_INTERRUPTIONS else LONGEST_DELAY
        return max(interval - ran, timedelta())
    if kind is ReasonClass.RETRYABLE and failures <= retries:
        return backoff(failures)
    return None
