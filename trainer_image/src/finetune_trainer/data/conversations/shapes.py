"""Tells by the names of a row's columns what the row is, and finds these columns one level deeper or in other letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune_trainer.data.conversations.messages import ROLES, known_role
from finetune_trainer.data.rows.columns import (
    CONTEXT,
    FURTHER_PAIRS,
    INSTRUCTION,
    INSTRUCTION_OUTPUTS,
    KNOWN,
    LIST_OF_MESSAGES,
    MESSAGES,
    PREFERENCES,
    PROMPT_AND_COMPLETION,
    SYSTEM,
    TEXT,
    TOOLS,
)
from finetune_trainer.data.rows.strict_json import JsonError, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = ("Messages", "PromptCompletion", "Alpaca", "ShareGPT")
_FOLDED = KNOWN | {name for pair in (*FURTHER_PAIRS, *PREFERENCES) for name in pair}
_HEAD = re.compile(r"[^.\[]+")


class Shape(NamedTuple):
    """What a row is: one of FORMATS or a key of `formats.HINTS`, and the columns that show it."""

    name: str
    why: str = ""


UNKNOWN = Shape("Unknown")


@dataclass(frozen=True)
class Names:
    """The names that the columns of a simplified row have in the file.

    `prefix` is the column that holds the row, with a point behind it, or nothing; it is not for columns in `outside`.
    `original` has the names in the file by the names in use.
    """

    prefix: str = ""
    original: Mapping[str, str] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()

    def place(self, place: str) -> str:
        """Return a place of the simplified row as a place of the row in the file."""
        head = _HEAD.match(place)
        if head is None:
            return place
        name = self.original.get(head[0], head[0])
        return ("" if name in self.outside else self.prefix) + name + place[head.end() :]


def shape_of(value: Mapping[str, Any]) -> Shape:
    """Return what a row is by its columns."""
    preference = any(all(value.get(name) is not None for name in pair) for pair in PREFERENCES)
    column = messages_column(value)
    if column is not None and not (preference and not _ends_with_answer(value[column])):
        return _shape_of_messages(value[column], column)
    output = first_given(value, INSTRUCTION_OUTPUTS)
    if value.get(INSTRUCTION) is not None and output is not None:
        return Shape("Alpaca", f"columns `{INSTRUCTION}` and `{output}`")
    pairs = pairs_of(value)
    if pairs:
        return _shape_of_pairs(value, pairs)
    if preference:
        return Shape("Preference")
    return Shape("Text") if value.get(TEXT) is not None else UNKNOWN


def has_columns(value: Mapping[str, Any], format_name: str) -> bool:
    """Return True if the row has the columns of a format, one of FORMATS."""
    if format_name == "Alpaca":
        return value.get(INSTRUCTION) is not None and first_given(value, INSTRUCTION_OUTPUTS) is not None
    if format_name == "PromptCompletion":
        return bool(pairs_of(value))
    return messages_column(value) is not None


def simplified(value: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any], Names]:
    """Return the row, or the row that it holds, so that `fits` is true if possible, and the names in the file.

    Letters of column names may be capital. The row may be the value of one column, beside tools and system prompt.
    """
    if fits(value):
        return value, Names()
    folded, names = _folded(value)
    if fits(folded):
        return folded, names
    inner: list[tuple[dict[str, Any], Names]] = []
    for name, item in value.items():
        if not isinstance(item, dict):
            continue
        row, inside = _folded(item)
        if fits(row):
            outside = {
                key: value[key] for key in (*TOOLS, *SYSTEM) if value.get(key) is not None and key not in row
            }
            inner.append(({**row, **outside}, Names(f"{name}.", inside.original, frozenset(outside))))
    return inner[0] if len(inner) == 1 else (value, Names())


def pairs_of(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of columns that may hold the question and the answer."""
    for names in (PROMPT_AND_COMPLETION, FURTHER_PAIRS):
        pairs = [pair for pair in names if all(value.get(name) is not None for name in pair)]
        if pairs:
            return pairs
    return []


def first_given(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of the columns that the row has, or None."""
    return next((name for name in names if value.get(name) is not None), None)


def messages_column(value: Mapping[str, Any], names: Sequence[str] = MESSAGES) -> str | None:
    """Return the first of the columns that may hold messages, or None. An object in it is a row of its own."""
    for name in names:
        found = value.get(name)
        if found is not None and (not isinstance(found, dict) or is_by_columns(found)):
            return name
    return None


def is_by_columns(value: Mapping[str, Any]) -> bool:
    """Return True for messages that are given as one list of roles and one of contents."""
    lists = [item for item in value.values() if isinstance(item, list)]
    return (
        bool(value.keys() & {"role", "from"})
        and len(lists) == len(value)
        and len({len(item) for item in lists}) == 1
    )


def list_of(value: Any) -> list[Any]:
    """Return the value if it is a list, the list that JSON text holds, or an empty list; a list of one list is that list."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError:
            return []
    if isinstance(value, dict) and is_by_columns(value):
        value = by_rows(value)
    if not isinstance(value, list):
        return []
    return value[0] if len(value) == 1 and isinstance(value[0], list) else value


def by_rows(value: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return messages that are given by columns one by one."""
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _folded(value: dict[str, Any]) -> tuple[dict[str, Any], Names]:
    """Return the row with the names of known columns in small letters."""
    original = {
        name.strip().lower(): name
        for name in value
        if name not in _FOLDED and name.strip().lower() in _FOLDED and name.strip().lower() not in value
    }
    if not original:
        return value, Names()
    used = {name: short for short, name in original.items()}
    return {used.get(name, name): item for name, item in value.items()}, Names(original=original)


def _shape_of_messages(messages: Any, column: str) -> Shape:
    named = "each row is a list of" if column == LIST_OF_MESSAGES else f"column `{column}` holds"
    item = next((item for item in list_of(messages) if isinstance(item, dict)), {})
    if item.get("from") is not None and item.get("role") is None:
        return Shape("ShareGPT", f"{named} objects with `from` and `value`")
    return Shape("Messages", f"{named} objects with `role` and `content`" if item else f"column `{column}`")


def _shape_of_pairs(value: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> Shape:
    prompt, completion = pairs[0]
    label = value.get("label")
    if isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in {"true", "false"}):
        return Shape("Labelled")
    if pairs[0] != PROMPT_AND_COMPLETION[0] and (len(pairs) > 1 or first_given(value, CONTEXT) is not None):
        return Shape("Ambiguous")
    return Shape("PromptCompletion", f"columns `{prompt}` and `{completion}`")


def _ends_with_answer(messages: Any) -> bool:
    items = list_of(messages)
    last = items[-1] if items and isinstance(items[-1], dict) else {}
    role = known_role(last.get("role", last.get("from")))
    return role is not None and ROLES[role] == "assistant"
