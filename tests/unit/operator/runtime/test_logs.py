from __future__ import annotations

import json
import logging
import sys

from finetune_operator.runtime.logs import JsonFormatter, OutageFilter

from tests.support.clock import Clock


def test_log_lines_are_json_with_the_traceback_inside() -> None:
    try:
        int("odd")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "x %s", ("y",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "a", "x y")
    assert "ValueError: invalid literal" in line["exception"]


def test_kopf_reports_an_outage_once_a_minute() -> None:
    clock = Clock()
    outage = OutageFilter(clock)

    def passes(name: str, message: str) -> bool:
        return outage.filter(logging.LogRecord(name, logging.ERROR, "", 0, message, (), None))

    attempt = "Request attempt #1/9 failed; will retry: GET https://x"
    assert [passes("kopf._cogs.clients.api", attempt) for _ in range(5)] == [True] + [False] * 4
    assert passes("kopf.objects", "something else")
    assert passes("finetune_operator", attempt)
    clock.now += 60
    assert passes("kopf._cogs.clients.api", attempt)
