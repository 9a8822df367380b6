"""The loop that retries a request."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.retry import Outage, RetryPolicy, retry

from tests.support.clock import Clock


class Script:
    """An action with a fixed outcome for each call, the last one repeated: an exception to raise, or a result.

    Pauses move the clock, and every call takes `seconds`.
    """

    def __init__(self, *outcomes: Exception | str, seconds: float = 0.0) -> None:
        self._outcomes = outcomes
        self._seconds = seconds
        self.calls = 0
        self.pauses: list[float] = []
        self.waits = 0
        self.clock = Clock()

    def __call__(self) -> str:
        outcome = self._outcomes[min(self.calls, len(self._outcomes) - 1)]
        self.calls += 1
        self.clock.now += self._seconds
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.now += seconds

    def _wait(self) -> None:
        self.waits += 1

    def run(
        self,
        progress: Callable[[], int] = lambda: 0,
        deadline: float = math.inf,
        seconds: float = 600.0,
        chance: float = 0.0,
    ) -> str:
        policy = RetryPolicy(seconds, self._sleep, lambda: chance, self.clock)
        return retry(
            self,
            unavailable,
            name="dataset",
            policy=policy,
            progress=progress,
            waiting=self._wait,
            deadline=deadline,
        )


def unavailable(found: str) -> StageError:
    return StageError(Reason.DATASET_UNAVAILABLE, f"found: {found}")


def test_pauses_double_up_to_a_minute() -> None:
    script = Script(*[Outage("down")] * 8, "done")
    assert script.run() == "done"
    assert script.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_chance_shortens_a_pause_by_up_to_a_half() -> None:
    script = Script(Outage("down"), Outage("down"), "done")
    script.run(chance=1.0)
    assert script.pauses == [0.5, 1.0]


def test_an_outage_ends_after_the_policys_time_and_not_before() -> None:
    script = Script(Outage("HTTP status 503"))
    with pytest.raises(StageError, match=r"found: HTTP status 503 \(16 attempts in 600 s\)") as caught:
        script.run()
    assert caught.value.reason is Reason.DATASET_UNAVAILABLE
    assert sum(script.pauses) == 600.0


def test_an_outage_shorter_than_the_policys_time_is_survived() -> None:
    script = Script(*[Outage("down")] * 15, "done")
    assert script.run() == "done"


def test_time_within_the_attempts_counts_too() -> None:
    script = Script(Outage("timeout"), seconds=100.0)
    with pytest.raises(StageError):
        script.run(seconds=250.0)
    assert script.calls == 4


def test_a_clock_that_stands_still_in_pauses_ends_the_loop_all_the_same() -> None:
    pauses: list[float] = []
    policy = RetryPolicy(600.0, pauses.append, lambda: 0.0, lambda: 5.0)
    with pytest.raises(StageError):
        retry(Script(Outage("down")), unavailable, name="dataset", policy=policy)
    assert sum(pauses) == 600.0


def test_without_time_there_is_one_attempt() -> None:
    script = Script(Outage("down"))
    with pytest.raises(StageError, match=r"found: down \(1 attempt\)"):
        script.run(seconds=0.0)
    assert script.pauses == []


def test_an_outage_can_bring_its_own_final_error_and_a_shorter_time() -> None:
    final = StageError(Reason.DATASET_ACCESS_DENIED, "no identity")
    script = Script(Outage("none", final_error=final, longest_seconds=120.0))
    with pytest.raises(StageError) as caught:
        script.run()
    assert caught.value is final
    assert sum(script.pauses) == 120.0


def test_any_other_exception_ends_the_loop_at_once() -> None:
    script = Script(ValueError("broken"), "never")
    with pytest.raises(ValueError, match="broken"):
        script.run()
    assert script.calls == 1


def test_progress_starts_the_back_off_and_its_time_again() -> None:
    script = Script(*[Outage("cut off")] * 6, "done", seconds=90.0)
    assert script.run(progress=lambda: script.calls, seconds=100.0) == "done"
    assert script.pauses == [1.0] * 6


def test_progress_below_the_best_so_far_starts_nothing_again() -> None:
    script = Script(Outage("starts anew"))
    with pytest.raises(StageError):
        script.run(progress=lambda: min(5 * script.calls, 20) or 20)
    assert sum(script.pauses) == 600.0


def test_a_longer_pause_that_the_server_requests_is_kept() -> None:
    script = Script(Outage("busy", 7.0), Outage("busy", 0.5), "done")
    script.run()
    assert script.pauses == [7.0, 2.0]


def test_chance_lengthens_a_requested_pause_and_never_shortens_it() -> None:
    script = Script(Outage("busy", 40.0), "done")
    script.run(chance=1.0)
    assert script.pauses == [44.0]


def test_a_requested_pause_has_a_cap_and_ends_with_the_policys_time() -> None:
    script = Script(Outage("busy", 86_400.0), "done")
    script.run()
    assert sum(script.pauses) == 300.0
    script = Script(Outage("busy", 86_400.0), "done")
    script.run(seconds=100.0)
    assert sum(script.pauses) == 100.0


def test_a_long_pause_reports_once_a_minute_that_the_stage_is_alive() -> None:
    script = Script(Outage("busy", 150.0), "done")
    script.run()
    assert script.pauses == [60.0, 60.0, 30.0]
    assert script.waits == 3


def test_every_pause_is_logged_with_what_was_found_and_how_long_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="finetune_trainer")
    Script(Outage("HTTP status 503"), Outage("busy", 7.0), "done").run()
    assert [record.getMessage() for record in caplog.records] == [
        "dataset: attempt 1 failed (HTTP status 503); the next one follows in 1 s, giving up in 600 s",
        "dataset: attempt 2 failed (busy); the next one follows in 7 s, giving up in 599 s",
    ]


def test_no_pause_exceeds_the_deadline() -> None:
    script = Script(Outage("busy", 30.0), Outage("busy"), "done")
    script.run(deadline=script.clock.now + 10.0)
    assert script.pauses == [10.0, 0.0]


def test_real_chance_spreads_the_pauses() -> None:
    """Pods that fail together must not return together."""
    pauses = [RetryPolicy().pause(5, 0.0) for _ in range(50)]
    assert all(8.0 <= pause <= 16.0 for pause in pauses)
    assert any(first != second for first, second in pairwise(pauses))


def test_the_error_hides_a_context_that_the_outage_hides() -> None:
    """A library's text may contain the URL, so only an explicit cause may reach a traceback."""

    def fail() -> None:
        try:
            int("https://host/?signature=secret")
        except ValueError:
            raise Outage("ValueError") from None

    with pytest.raises(StageError) as caught:
        retry(fail, unavailable, name="dataset", policy=RetryPolicy(0.0))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
