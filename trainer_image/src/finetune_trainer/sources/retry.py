"""One loop for every request that is tried again: URLs, hubs and object stores.

It is written here and not taken from a library such as tenacity. Progress starts the back-off again, a server may ask
for a longer pause, and the deadline shortens every pause. A library would need these three rules as plug-ins with
shared state, which is longer than the loop itself, and the image would carry one more package.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from finetune_trainer.errors import StageError

DEFAULT_RETRY_SECONDS = 600.0
IDENTITY_RETRY_SECONDS = 120.0
"""A pod without an identity is a common mistake, so its author hears of it earlier than of an outage."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 300.0
_SLICE_SECONDS = 60.0
_NOTHING_LEFT_SECONDS = 0.01  # a last pause ends a little early, because the failure itself took time
_SHORTEST_COUNTED_SECONDS = 0.5  # ends a loop whose pauses the deadline shortens to nothing

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Outage(Exception):  # noqa: N818 -- a signal to try again, turned into a reason at the end
    """An attempt failed in a way that may pass. The text says what was found and holds no secret.

    `pause_seconds` is the pause that the server asks for. `final_error` is raised if the outage does not pass; None
    stands for the caller's error. `longest_seconds` shortens the policy's time for this kind of outage.
    """

    def __init__(
        self,
        found: str,
        pause_seconds: float = 0.0,
        final_error: StageError | None = None,
        longest_seconds: float = math.inf,
    ) -> None:
        super().__init__(found)
        self.pause_seconds = pause_seconds
        self.final_error = final_error
        self.longest_seconds = longest_seconds


@dataclass(frozen=True)
class RetryPolicy:
    """The time to wait for a server.

    `seconds` bounds an outage: the time from its first failure, or since the last progress, to the last attempt. The
    pauses double from 1 to 60 s, shortened at random by up to a half, so that many pods do not return at once. A pause
    that the server asks for is kept up to 300 s and lengthened at random by up to a tenth. `sleep` waits, `chance`
    returns a random number from 0 to 1, and `clock` returns monotonic seconds.
    """

    seconds: float = DEFAULT_RETRY_SECONDS
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic

    def pause(self, failures: int, asked: float) -> float:
        """Return the seconds to wait after `failures` in a row (at least 1), if the server asks for `asked`."""
        doubled = min(_FIRST_PAUSE_SECONDS * (1 << min(failures - 1, 16)), _LONGEST_BACK_OFF_SECONDS)
        backed_off = doubled * (1 - self.chance() / 2)
        requested = min(asked, _LONGEST_PAUSE_SECONDS) * (1 + self.chance() / 10)
        return max(backed_off, requested)


def retry(
    action: Callable[[], _Result],
    unavailable: Callable[[str], StageError],
    *,
    name: str,
    policy: RetryPolicy,
    progress: Callable[[], int] = lambda: 0,
    waiting: Callable[[], None] = lambda: None,
    deadline: float = math.inf,
) -> _Result:
    """Call `action` until it succeeds, and return its result.

    An `Outage` starts another attempt after a pause, any other exception ends the loop. An outage that lasts for the
    policy's time without growth of `progress()` raises the error that `unavailable` makes from the text of the last
    failure with the number of attempts. No pause goes beyond `deadline` (of the policy's clock). `waiting` is called
    before each pause, and once a minute in a long one. The error has the cause of the outage, never its context, which
    may hold a secret. `name` names the fetched object in the log.
    """
    failures, best, waited, began = 0, progress(), 0.0, 0.0
    while True:
        try:
            return action()
        except Outage as outage:
            if failures == 0 or progress() > best:
                failures, waited, began = 0, 0.0, policy.clock()
            failures += 1
            best = max(best, progress())
            # The pauses count too, for a clock that stands still in them.
            spent = max(policy.clock() - began, waited)
            left = min(policy.seconds, outage.longest_seconds) - spent
            late = policy.clock() >= deadline
            if left <= _NOTHING_LEFT_SECONDS:
                _log.warning("%s: attempt %d failed (%s); giving up", name, failures, outage)
                count = "1 attempt" if failures == 1 else f"{failures} attempts in {spent:.0f} s"
                raise (outage.final_error or unavailable(f"{outage} ({count})")) from outage.__cause__
            pause = min(policy.pause(failures, outage.pause_seconds), left)
            pause = 0.0 if late else min(pause, deadline - policy.clock())
            _log.warning(
                "%s: attempt %d failed (%s); the next one follows in %.0f s, giving up in %.0f s",
                name,
                failures,
                outage,
                pause,
                left,
            )
        waited += max(pause, _SHORTEST_COUNTED_SECONDS)
        _wait(pause, policy.sleep, waiting)


def _wait(seconds: float, sleep: Callable[[float], None], waiting: Callable[[], None]) -> None:
    while True:
        waiting()
        part = min(seconds, _SLICE_SECONDS)
        sleep(part)
        seconds -= part
        if seconds <= 0:
            return
