"""JSON with what Python's encoder does not write: numbers in any notation, repeated keys, and escapes of half a character."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Raw(str):
    """A text that stands in the JSON document as it is."""

    __slots__ = ()


class Repeated(dict[str, Any]):
    """An object whose members all stand twice in the document."""


def encode(value: Any) -> str:
    """Return `value` as JSON of ASCII characters."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        members = [f"{json.dumps(key)}:{encode(item)}" for key, item in value.items()]
        return "{" + ",".join(members * 2 if isinstance(value, Repeated) else members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(encode, value)) + "]"
    return json.dumps(value)
