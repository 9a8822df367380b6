"""The loop that retries a request."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.retry import ATTEMPTS, PAUSES_SECONDS, Outage, retry


class Script:
    """An action with a fixed outcome for each call: an exception to raise, or a result."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self._outcomes = list(outcomes)
        self.calls = 0
        self.pauses: list[float] = []

    def __call__(self) -> str:
        outcome = self._outcomes[self.calls]
        self.calls += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self, progress: Callable[[], int] = lambda: 0, deadline: float = float("inf")) -> str:
        return retry(
            self, unavailable, name="dataset", sleep=self.pauses.append, progress=progress, deadline=deadline
        )


def unavailable(found: str) -> StageError:
    return StageError(Reason.DATASET_UNAVAILABLE, f"found: {found}")


def test_every_temporary_outage_adds_a_pause() -> None:
    script = Script(Outage("one"), Outage("two"), "done")
    assert script.run() == "done"
    assert script.pauses == list(PAUSES_SECONDS)


def test_the_last_outage_gives_the_error_its_text() -> None:
    script = Script(*(Outage(f"outage {number}") for number in range(ATTEMPTS)))
    with pytest.raises(StageError, match=f"found: outage {ATTEMPTS - 1}"):
        script.run()
    assert script.calls == ATTEMPTS
    assert len(script.pauses) == ATTEMPTS - 1


def test_an_outage_can_bring_its_own_final_error() -> None:
    final = StageError(Reason.DATASET_ACCESS_DENIED, "no identity")
    with pytest.raises(StageError) as caught:
        Script(*[Outage("none", final_error=final)] * ATTEMPTS).run()
    assert caught.value is final


def test_any_other_exception_ends_the_loop_at_once() -> None:
    script = Script(ValueError("broken"), "never")
    with pytest.raises(ValueError, match="broken"):
        script.run()
    assert script.calls == 1


def test_progress_resets_the_count_of_failures() -> None:
    script = Script(*[Outage("cut off")] * 6, "done")
    assert script.run(progress=lambda: script.calls) == "done"
    assert script.pauses == [PAUSES_SECONDS[0]] * 6


def test_progress_below_the_best_so_far_resets_nothing() -> None:
    script = Script(*[Outage("starts anew")] * ATTEMPTS)
    with pytest.raises(StageError):
        script.run(progress=lambda: 5 * script.calls or 20)
    assert script.calls == ATTEMPTS


def test_a_longer_pause_that_the_server_requests_is_kept() -> None:
    script = Script(Outage("busy", 7.0), Outage("busy", 0.5), "done")
    script.run()
    assert script.pauses == [7.0, PAUSES_SECONDS[1]]


def test_no_pause_exceeds_the_deadline() -> None:
    script = Script(Outage("busy", 30.0), Outage("busy"), "done")
    script.run(deadline=time.monotonic() - 1)
    assert script.pauses == [0.0, 0.0]


def test_the_error_hides_a_context_that_the_outage_hides() -> None:
    """A library's text may contain the URL, so only an explicit cause may reach a traceback."""

    def fail() -> None:
        try:
            int("https://host/?signature=secret")
        except ValueError:
            raise Outage("ValueError") from None

    with pytest.raises(StageError) as caught:
        retry(fail, unavailable, name="dataset", sleep=lambda _: None)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
