"""Rows of a JSONL file, one by one, with their line numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows import RowReason, RowRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One non-blank line: its 1-based number in the file, and the object on it or why there is none.

    `offset` is the number of bytes read so far, for progress.
    """

    number: int
    value: dict[str, Any] | RowRefused
    offset: int


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a UTF-8 JSONL file, byte order mark allowed; blank lines are skipped but counted."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            offset += len(raw)
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if not line.strip():
                continue
            try:
                yield Row(number, parse_line(line), offset)
            except RowRefused as refusal:
                yield Row(number, refusal, offset)


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse one line. Raises RowRefused with InvalidEncoding, InvalidJson or NotAnObject."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowRefused(
            RowReason.INVALID_ENCODING, f"byte {error.start + 1}", f"not UTF-8: {error.reason}"
        ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowRefused(RowReason.INVALID_JSON, f"column {error.colno}", error.msg) from error
    except (ValueError, RecursionError) as error:
        # Numbers with too many digits, and nesting deeper than the interpreter's stack.
        raise RowRefused(RowReason.INVALID_JSON, "line", str(error) or type(error).__name__) from error
    if not isinstance(value, dict):
        raise RowRefused(RowReason.NOT_AN_OBJECT, "line", f"found a JSON {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "value")
