"""The request to stop this process, by SIGTERM or SIGINT. Its imports are light, so that it is there before all others."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Terminated(BaseException):
    """The process was asked to stop. It is no Exception, so that no library's handler catches it."""


class Termination:
    """Takes SIGTERM and SIGINT: raises Terminated, or remembers the signal while a result is written."""

    def __init__(self) -> None:
        self._raises = True
        self._begun = False
        self.received: str | None = None
        """Name of the first signal; None if there was none."""

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.received = self.received or signal.Signals(number).name
        if self._raises:
            self.check()

    def begin(self) -> None:
        """Remember both signals until `listen`, which raises them. Call it before any other import.

        The kernel drops a signal to the first process of a container as long as that has no handler. The pod would keep its
        GPU for the whole grace period.
        """
        self._raises, self._begun, self.received = False, True, None
        self._handle()

    def listen(self) -> None:
        """Take both signals from here on. Raises Terminated if one came since `begin`."""
        self._raises, begun, self._begun = True, self._begun, False
        self._handle()
        if begun:
            self.check()
        self.received = None

    def _handle(self) -> None:
        signal.signal(signal.SIGTERM, self.take)
        signal.signal(signal.SIGINT, self.take)

    def remember(self) -> None:
        """Only remember signals from here on. A second or a late one must not cost the stage's result."""
        self._raises = False

    def check(self) -> None:
        """Raise Terminated if a signal came."""
        if self.received is not None:
            raise Terminated(self.received)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise Terminated in this block, also for a signal that came before it; only remember signals after it."""
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False


TERMINATION = Termination()
"""That of this process."""


def raise_on_termination() -> None:
    """Turn SIGTERM and SIGINT into Terminated. TRAIN replaces the handler while it runs."""
    TERMINATION.listen()
