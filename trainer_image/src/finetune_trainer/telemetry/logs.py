"""Logging of a stage: redacted lines to standard error and the workspace, and the last lines for the result."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from finetune_trainer.telemetry.kept_log import KeptLog

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.telemetry.redaction import Redactor

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
_KEPT_LINES = 20


class _RedactingFormatter(logging.Formatter):
    """Formats first and redacts afterwards, so that tracebacks are redacted too.

    It never raises: an error would end the stage, or `logging` would print the record's arguments without redaction.
    """

    def __init__(self, redact: Redactor) -> None:
        super().__init__(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
        self._redact = redact
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        try:
            text = super().format(record)
        except Exception as error:  # noqa: BLE001 -- a library may log with arguments that do not fit its message
            said = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            text = (
                f"{record.levelname} {record.name}: {said} (its arguments do not fit: {type(error).__name__})"
            )
        return self._redact(text)


class LogTail(logging.Handler):
    """Keeps the last 20 lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the lines of one record."""
        self.lines.extend(self.format(record).splitlines())


def configure_logging(redact: Redactor) -> LogTail:
    """Send every record and Python's warnings, redacted, to standard error; return the handler of the last lines."""
    tail = LogTail()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in (logging.StreamHandler(sys.stderr), tail):
        handler.setFormatter(_RedactingFormatter(redact))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # A line for each request would hide the stage's own lines and show addresses.
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "numba"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return tail


def add_log_file(path: Path, redact: Redactor) -> None:
    """Also keep the log in `path`. Raises OSError if it cannot be opened."""
    handler = KeptLog(path, redact)
    handler.setFormatter(_RedactingFormatter(redact))
    logging.getLogger().addHandler(handler)
