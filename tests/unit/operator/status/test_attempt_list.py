from __future__ import annotations

from typing import Any

from finetune_operator.lifecycle.retry import LONGEST_WAIT, backoff
from finetune_operator.status.attempt_list import MAXIMUM_ATTEMPTS, MAXIMUM_WAITS, appended


def attempt(stage: str, number: int, reason: str, outcome: str = "Failed") -> dict[str, Any]:
    return {"stage": stage, "attempt": number, "outcome": outcome, "reason": reason}


def test_a_list_that_is_not_full_keeps_everything() -> None:
    attempts: list[Any] = []
    for number in range(MAXIMUM_ATTEMPTS):
        attempts = appended(attempts, attempt("Merge", number, "DestinationUnwritable"))
    assert [entry["attempt"] for entry in attempts] == list(range(MAXIMUM_ATTEMPTS))


def test_failures_of_a_destination_never_displace_the_other_attempts() -> None:
    others = [
        attempt("Prepare", 0, "StageSucceeded", "Succeeded"),
        attempt("Train", 0, "InternalError"),
        attempt("Train", 1, "StageSucceeded", "Succeeded"),
    ]
    attempts: list[Any] = others
    for number in range(500):
        attempts = appended(attempts, attempt("Merge", number, "DestinationUnwritable"))
    assert attempts[:3] == others
    assert len(attempts) == MAXIMUM_ATTEMPTS
    assert attempts[-1]["attempt"] == 499


def test_interruptions_leave_enough_failures_of_a_destination_for_the_longest_delay() -> None:
    attempts: list[Any] = []
    for number in range(500):
        reason, outcome = ("DestinationUnwritable", "Failed") if number % 2 else ("Disrupted", "Interrupted")
        attempts = appended(attempts, attempt("Merge", number, reason, outcome))
    kept = sum(entry["reason"] == "DestinationUnwritable" for entry in attempts)
    assert kept >= MAXIMUM_WAITS
    assert backoff(MAXIMUM_WAITS, LONGEST_WAIT) == LONGEST_WAIT
