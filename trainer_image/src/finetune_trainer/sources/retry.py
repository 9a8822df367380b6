"""One loop for every request that is tried again: URLs, hubs and object stores.

It is written here and not taken from a library such as tenacity. Progress resets the count of failures, a server may
ask for a longer pause, and the deadline shortens every pause. A library would need these three rules as plug-ins with
shared state, which is longer than the loop itself, and the image would carry one more package.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from finetune_trainer.errors import StageError

ATTEMPTS = 3
PAUSES_SECONDS = (1.0, 2.0)

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Outage(Exception):  # noqa: N818 -- a signal to try again, turned into a reason at the end
    """An attempt failed in a way that may pass. The text says what was found and holds no secret.

    `pause_seconds` is the pause that the server asks for. `final_error` is raised if the outage does not pass; None
    stands for the caller's error.
    """

    def __init__(self, found: str, pause_seconds: float = 0.0, final_error: StageError | None = None) -> None:
        super().__init__(found)
        self.pause_seconds = pause_seconds
        self.final_error = final_error


def retry(
    action: Callable[[], _Result],
    unavailable: Callable[[str], StageError],
    *,
    name: str,
    sleep: Callable[[float], None],
    progress: Callable[[], int] = lambda: 0,
    deadline: float = math.inf,
) -> _Result:
    """Call `action` until it succeeds, and return its result.

    An `Outage` starts another attempt after a pause, any other exception ends the loop. Three failures in a row
    without growth of `progress()` raise the error that `unavailable` makes from the text of the last outage. No pause
    goes beyond `deadline` (of time.monotonic). The error has the cause of the outage, never its context, which may
    hold a secret. `name` names the fetched object in the log.
    """
    failures, best = 0, progress()
    while True:
        try:
            return action()
        except Outage as outage:
            failures = 1 if progress() > best else failures + 1
            best = max(best, progress())
            _log.warning("%s: attempt %d of %d failed (%s)", name, failures, ATTEMPTS, outage)
            if failures >= ATTEMPTS:
                raise (outage.final_error or unavailable(str(outage))) from outage.__cause__
            pause = max(PAUSES_SECONDS[failures - 1], outage.pause_seconds)
        sleep(max(0.0, min(pause, deadline - time.monotonic())))
