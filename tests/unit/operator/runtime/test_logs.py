from __future__ import annotations

import json
import logging
import sys

from finetune_operator.runtime.logs import JsonFormatter


def test_log_lines_are_json_with_the_traceback_inside() -> None:
    try:
        int("odd")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "x %s", ("y",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "a", "x y")
    assert "ValueError: invalid literal" in line["exception"]
