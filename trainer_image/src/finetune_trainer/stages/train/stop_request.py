"""A request to stop, by SIGTERM or SIGINT: raised at once, or remembered while work must not be cut."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.termination import Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class StopRequest:
    """Raises `Terminated` in the main thread after the first signal, except inside `held`.

    Code inside `held` calls `check` where it can stop. A library may swallow the exception of a signal handler, for
    example while Python collects garbage. The request stays recorded, so the next `check` raises it again.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the first signal; None if there was none."""
        self._holds = 0
        self._raised = False

    @property
    def received(self) -> bool:
        """Whether a signal arrived."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests; restore the earlier handlers afterwards."""

        def take(number: int, _frame: FrameType | None) -> None:
            # Nothing is logged here: the signal may interrupt a log line.
            self.signal = self.signal or signal.Signals(number).name
            # Later signals change nothing: the first one is being obeyed.
            if not self._holds and not self._raised:
                self.check()

        before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only remember requests in this block; raise Terminated at its end if one came and no error is raised."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()

    def hold(self) -> None:
        """Only remember requests from here on, because the work is done."""
        self._holds += 1

    def check(self) -> None:
        """Raise Terminated if a request came."""
        if self.signal is not None:
            self._raised = True
            raise Terminated(self.signal)


def interrupted(signal_name: str, saved: tuple[int, int] | None) -> StageError:
    """Return the error of a run that a signal stopped; `saved` is the saved step and the number of all steps."""
    kept = (
        "no step had been finished"
        if saved is None
        else f"its state at step {saved[0]} of {saved[1]} is saved"
    )
    return StageError(
        Reason.INTERRUPTED,
        f"the run was stopped by {signal_name}, and {kept}; run it again to continue from there",
    )
