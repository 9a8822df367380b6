"""Gives the operator the time to hold a job before PREPARE fetches weights, or fails for good.

The operator learns the model's config and its trace from PREPARE's progress, and suspends a job that no GPU can train. A hold
can end, for instance when a larger GPU joins. A failure cannot, so a failure that another volume would avoid comes second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune_trainer.errors import StageError

HOLD_SECONDS = 12.0
"""Two of the operator's polls (`progressSeconds` of the chart, 5 by default) and its reaction."""


def await_decision(
    reported: float, now: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
) -> None:
    """Wait until HOLD_SECONDS after the operator could first size the model, which was at `reported` (as `now`).

    A hold ends the wait: the operator sends SIGTERM.
    """
    wait(max(0.0, reported + HOLD_SECONDS - now()))


@contextmanager
def after_the_operator(
    reported: float, now: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Delay a StageError inside of the `with` statement until HOLD_SECONDS after the config was `reported`.

    `now` tells the time in seconds, as `reported` does. Success does not wait. A hold ends the wait: the operator sends
    SIGTERM.
    """
    try:
        yield
    except StageError:
        await_decision(reported, now, wait)
        raise
