"""Parses JSON as RFC 8259 defines it, and reports the place of each fault.

Python's parser also accepts NaN and Infinity, silently keeps the last of two equal keys, and fails with a
RecursionError on deep nesting. Such a row would be trained as something other than its text.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAXIMUM_DEPTH = 100  # later readers of a row (templates, canonical JSON) recurse a few frames per level


class JsonError(ValueError):
    """Text that is not JSON. `position` is the 0-based character at fault; None if the parser does not know it."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


def parse_json(text: str) -> Any:
    """Parse one JSON text. Raises JsonError."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.pos) from error
    except RecursionError as error:
        raise JsonError(_TOO_DEEP) from error
    except JsonError:
        raise
    except ValueError as error:
        # The integer has more digits than the interpreter converts.
        raise JsonError("a number has too many digits") from error
    # A text with few opening brackets cannot be deep, and counting them is cheap.
    if text.count("{") + text.count("[") > MAXIMUM_DEPTH and _depth_exceeds(value, MAXIMUM_DEPTH):
        raise JsonError(_TOO_DEEP)
    return value


def kind_of(value: Any) -> str:
    """Name the JSON type of a parsed value: object, array, string, number, boolean or null."""
    if value is None:
        return "null"
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def shown(value: Any, limit: int = 40) -> str:
    """Return a value for messages, as ASCII JSON of at most `limit` characters, so that any value can be printed."""
    if isinstance(value, str):
        value = value[:limit]
    text = json.dumps(value, ensure_ascii=True, skipkeys=True, default=lambda item: type(item).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


_TOO_DEEP = f"nested more than {MAXIMUM_DEPTH} levels deep"


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _reject_constant(name: str) -> Any:
    raise JsonError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError(f"the number {text[:20]} is too large")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        raise JsonError(f"the key {shown(twice)} appears twice in one object")
    return value


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite, object_pairs_hook=_distinct)
