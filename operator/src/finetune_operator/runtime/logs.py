"""JSON logs: one object per line, for collectors that index fields."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

QUIET_SECONDS = 60.0


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (RFC 3339, UTC), level, logger, message and, for an exception, the traceback."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class OutageFilter(logging.Filter):
    """Lets one record a minute pass of those with which Kopf reports each failed request of each of its watches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is monotonic, in seconds."""
        super().__init__()
        self._clock = clock
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record to drop."""
        if not record.name.startswith("kopf") or not str(record.msg).startswith("Request attempt"):
            return True
        now = self._clock()
        if now - self._last < QUIET_SECONDS:
            return False
        self._last = now
        return True


def configure_logging(level: str) -> None:
    """Send records of `level` and above to standard error. Kopf logs every object, so its level is WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(OutageFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if level != "DEBUG":
        logging.getLogger("kopf").setLevel(logging.WARNING)
