"""A request to stop, by a signal."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_log = logging.getLogger(__name__)


class StopRequest:
    """Remembers a request to stop until the end of the training step."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests; restore the earlier handlers afterwards."""

        def remember(number: int, _frame: FrameType | None) -> None:
            _log.warning(
                "%s received: saving a checkpoint at the end of this step", signal.Signals(number).name
            )
            self.received = True

        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
