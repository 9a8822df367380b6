"""Decides when a failed or interrupted stage is retried."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.reasons import ReasonClass

FIRST_DELAY = timedelta(seconds=10)
LONGEST_DELAY = timedelta(minutes=5)
LONGEST_WAIT = timedelta(minutes=10)
"""Longest delay between two attempts of MERGE at a destination that fails."""
MANY_INTERRUPTIONS = 15
"""Of the 20 attempts that status keeps."""

MAXIMUM_ATTEMPT = 1000
"""Highest attempt number that the contract allows."""


def backoff(count: int, longest: timedelta = LONGEST_DELAY) -> timedelta:
    """Delay before the next attempt after `count` failures (at least 1): 10 s, 20 s, 40 s and so on, at most `longest`."""
    exponent = min(max(count, 1) - 1, 16)
    return min(FIRST_DELAY * (1 << exponent), longest)


def delay_after(
    kind: ReasonClass,
    *,
    failures: int,
    interruptions: int,
    retries: int,
    ran: timedelta,
    waits: int = 0,
    may_grow: bool = False,
) -> timedelta | None:
    """Delay before the next attempt; None if there is none.

    `failures`, `interruptions` and `waits` count this stage's attempts that ended so, including this one. `waits` are
    failures with a cause outside the job. They are tried again without a limit, and `failures` does not contain them.
    `ran` is the age of the attempt's Job. An interruption does not count as a retry. The first one continues at once.
    After that, attempts start at least 10 s apart, so that a pod that is always killed does not spin. After many
    interruptions they start at least 5 min apart. `may_grow` means that the next attempt gets more of the resource that
    this one lacked (sizing.hosts.may_retry_with_more): it follows after 10 s and does not count as a retry.
    """
    if may_grow:
        return FIRST_DELAY
    if kind is ReasonClass.WAITING:
        return backoff(waits, LONGEST_WAIT)
    if kind is ReasonClass.INTERRUPTED:
        if interruptions <= 1:
            return timedelta()
        interval = FIRST_DELAY if interruptions < MANY_INTERRUPTIONS else LONGEST_DELAY
        return max(interval - ran, timedelta())
    if kind is ReasonClass.RETRYABLE and failures <= retries:
        return backoff(failures)
    return None


def next_attempt(attempt: int, kind: ReasonClass) -> int | None:
    """Number of the attempt after `attempt`; None if there is none.

    Only a wait has no last attempt. Its numbers begin again with 0, whose Job was deleted long ago.
    """
    if attempt < MAXIMUM_ATTEMPT:
        return attempt + 1
    return 0 if kind is ReasonClass.WAITING else None
