"""Random texts that match a regular expression."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser of expressions in the standard library
from typing import Any

_ANYTHING = [chr(code) for code in range(0x21, 0x7F)] + ["é", "ß", "中"]
_MOST_REPEATS = 6


def matching(pattern: str, rng: random.Random) -> str:
    """Return a text that `pattern` matches; repetitions without an end are short."""
    return _all(_parser.parse(pattern), rng)


def _all(items: Any, rng: random.Random) -> str:
    return "".join(_one(kind, value, rng) for kind, value in items)


def _one(kind: Any, value: Any, rng: random.Random) -> str:
    if kind not in _MAKERS:
        raise ValueError(f"a pattern must have parts that are known here, found {kind}")
    return _MAKERS[kind](value, rng)


def _repeat(value: Any, rng: random.Random) -> str:
    least, most, items = value
    count = rng.randint(least, min(most, least + _MOST_REPEATS))
    return "".join(_all(items, rng) for _ in range(count))


_MAKERS: dict[Any, Callable[[Any, random.Random], str]] = {
    _constants.LITERAL: lambda value, _rng: chr(value),
    _constants.NOT_LITERAL: lambda value, rng: rng.choice([each for each in _ANYTHING if each != chr(value)]),
    _constants.ANY: lambda _value, rng: rng.choice(_ANYTHING),
    _constants.IN: lambda value, rng: rng.choice(_members(value)),
    _constants.MAX_REPEAT: _repeat,
    _constants.SUBPATTERN: lambda value, rng: _all(value[-1], rng),
    _constants.BRANCH: lambda value, rng: _all(rng.choice(value[1]), rng),
    _constants.AT: lambda _value, _rng: "",
}


def _members(parts: Any) -> list[str]:
    negated = parts[0][0] is _constants.NEGATE
    text = "".join(_part(kind, value) for kind, value in parts if kind is not _constants.NEGATE)
    if not negated:
        return list(text)
    return [each for each in _ANYTHING if each not in text]


def _part(kind: Any, value: Any) -> str:
    if kind is _constants.RANGE:
        return "".join(map(chr, range(value[0], value[1] + 1)))
    if kind is _constants.CATEGORY:
        return " \t\n" if value is _constants.CATEGORY_SPACE else "0123456789"
    return chr(value)


def pattern_of(schema: dict[str, Any]) -> str | None:
    """Return the regular expression of a field, from its pattern or from its first rule; None if it has none."""
    if "pattern" in schema:
        return str(schema["pattern"])
    for rule in schema.get("x-kubernetes-validations", []):
        found = re.match(r"self\.matches\('(.*?)'\)", rule["rule"])
        if found:
            return found[1]
    return None
