from __future__ import annotations

from datetime import timedelta

import pytest
from finetune_operator.api.reasons import ReasonClass
from finetune_operator.lifecycle.retry import MAXIMUM_ATTEMPT, backoff, delay_after, next_attempt


def test_an_attempt_that_gets_more_memory_follows_soon_and_costs_no_retry() -> None:
    delay = delay_after(
        ReasonClass.PERMANENT, failures=1, interruptions=0, retries=0, ran=timedelta(), may_grow=True
    )
    assert delay == timedelta(seconds=10)


def test_backoff_doubles_from_ten_seconds_to_five_minutes() -> None:
    assert [backoff(count).total_seconds() for count in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert backoff(10**6) == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("kind", "failures", "interruptions", "retries", "ran", "seconds"),
    [
        (ReasonClass.PERMANENT, 1, 0, 5, 0, None),
        (ReasonClass.RETRYABLE, 1, 0, 0, 0, None),
        (ReasonClass.RETRYABLE, 1, 0, 2, 60, 10),
        (ReasonClass.RETRYABLE, 2, 9, 2, 0, 20),
        (ReasonClass.RETRYABLE, 3, 0, 2, 0, None),
        (ReasonClass.INTERRUPTED, 9, 1, 0, 0, 0),
        (ReasonClass.INTERRUPTED, 0, 2, 0, 4, 6),
        (ReasonClass.INTERRUPTED, 0, 9, 0, 60, 0),
        (ReasonClass.INTERRUPTED, 0, 15, 0, 60, 240),
    ],
)
def test_the_class_of_a_failure_decides_about_a_retry_and_its_delay(
    kind: ReasonClass, failures: int, interruptions: int, retries: int, ran: int, seconds: float | None
) -> None:
    delay = delay_after(
        kind, failures=failures, interruptions=interruptions, retries=retries, ran=timedelta(seconds=ran)
    )
    assert (None if delay is None else delay.total_seconds()) == seconds


def test_a_wait_has_growing_delays_up_to_ten_minutes_whatever_the_retries_are() -> None:
    delays = [
        delay_after(ReasonClass.WAITING, failures=0, interruptions=0, retries=0, ran=timedelta(), waits=count)
        for count in (1, 2, 3, 7, 10**6)
    ]
    assert delays == [timedelta(seconds=seconds) for seconds in (10, 20, 40, 600, 600)]


def test_only_a_wait_has_no_last_attempt() -> None:
    assert next_attempt(0, ReasonClass.RETRYABLE) == 1
    assert next_attempt(MAXIMUM_ATTEMPT, ReasonClass.RETRYABLE) is None
    assert next_attempt(MAXIMUM_ATTEMPT, ReasonClass.INTERRUPTED) is None
    assert next_attempt(MAXIMUM_ATTEMPT, ReasonClass.WAITING) == 0
