"""Names a file of which most rows cannot be read, so that its owner reads one message and not one for each row."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from finetune_trainer.data.rows.excerpts import excerpt
from finetune_trainer.data.rows.kind import Kind
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import JsonError, parse_json
from finetune_trainer.data.rows.text_kinds import text_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

_DETAIL_CHARACTERS = 200
_JSON_LINES = "write one JSON object per line"
_NO_NUMBERS = ("NaN ", "Infinity ", "-Infinity ")
_BY_REASON = {
    RowReason.INVALID_ENCODING: ("text that is not UTF-8", "save it as UTF-8"),
    RowReason.NOT_AN_OBJECT: (
        "JSON values that are not objects",
        'write each row as an object, such as {"messages": [...]}',
    ),
}


def unreadable_kind(text: str, unreadable: Sequence[tuple[int, RowRejected]], tried: int) -> Kind:
    """Return what a file is that begins with `text`.

    `unreadable` are rows of it with their numbers, one at least, of the number of rows that were `tried`.
    """
    number, first = unreadable[0]
    shown = excerpt(f"row {number}: {first.field}: {first.detail}", _DETAIL_CHARACTERS)
    reason = Counter(rejection.reason for _, rejection in unreadable).most_common(1)[0][0]
    if reason is RowReason.NOT_AN_OBJECT and _holds_json(text):
        return Kind("rows that are JSON texts inside JSON texts (encoded twice)", "encode each row once")
    if reason in _BY_REASON:
        what, remedy = _BY_REASON[reason]
        return Kind(f"{what} ({shown})", remedy)
    if sum(rejection.detail.startswith(_NO_NUMBERS) for _, rejection in unreadable) * 2 > len(unreadable):
        return Kind(
            f"rows with NaN or Infinity, which are not JSON ({shown})",
            "write null in their place, as `to_json` of pandas does",
        )
    kind = text_kind(text)
    if kind is None and len(unreadable) < tried and reason is not RowReason.INVALID_CSV:
        return Kind(
            f"other text between the rows ({len(unreadable)} of {tried} are not JSON; {shown})", _JSON_LINES
        )
    return kind or _unknown(text, reason, shown)


def _unknown(text: str, reason: RowReason, shown: str) -> Kind:
    if reason is RowReason.INVALID_CSV:
        return Kind(
            f"a table whose rows do not fit its header ({shown})",
            "quote fields that contain the separator, quotes or line breaks, and double the quotes in them",
        )
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return Kind(f"text that begins like JSON and is none ({shown})", _JSON_LINES)
    return Kind(f"plain text ({shown})", f"{_JSON_LINES}, with `messages` or with `prompt` and `completion`")


def _holds_json(text: str) -> bool:
    """Return True if the first line of a text is a JSON string that holds a JSON object or array."""
    try:
        value = parse_json(text.strip().split("\n", 1)[0].strip(" \t\r[,"))
        return isinstance(value, str) and isinstance(parse_json(value), dict | list)
    except JsonError:
        return False
