"""Names JSON documents that hold no rows, or hold them by columns: tables of pandas, notebooks, answers of a server."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from finetune_trainer.data.rows.columns import FURTHER_PAIRS, HISTORY, KNOWN, MESSAGES, TOOLS
from finetune_trainer.data.rows.excerpts import excerpt
from finetune_trainer.data.rows.json_scanner import JsonScanner, ScanError
from finetune_trainer.data.rows.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

_BEGINNING = 200
_MOST_MEMBERS = 50
_SHOWN = 80
_BY_ROWS = "write the table by rows (pandas: `to_json(orient='records', lines=True)`, datasets: `to_json`)"
_NUMBERED = re.compile(rb'\{\s*"\d+"\s*:')
_EMPTY = re.compile(rb"\{\s*\}")
_FIRST_NAME = re.compile(rb'\{\s*"([^"\\]*)"\s*:')
_LISTS = re.compile(rb"\[\s*\[")
_TEXTS = re.compile(rb'\[\s*"')
_TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_OF_ERRORS = {
    *("error", "errors", "error_description", "error_type", "message", "detail"),
    *("code", "status", "statusCode", "documentation_url", "path", "timestamp", "requestId"),
}


def document_kind(members: Sequence[tuple[str, bytes]]) -> Kind | None:
    """Return what a JSON object is that is a whole file; None if it may be a row or hold a list of rows.

    `members` has the names of its first members, each with the beginning of its value.
    """
    if not members:
        return None
    return next((kind for kind in (rule(members) for rule in _RULES) if kind is not None), None)


def first_members(head: bytes, start: int) -> list[tuple[str, bytes]]:
    """Return names and beginnings of the values of the object that begins at `start`, as far as `head` reaches."""
    found: list[tuple[str, bytes]] = []
    try:
        for raw, offset in JsonScanner(io.BytesIO(head), len(head), start).members():
            name = raw.strip(b'"').decode("utf-8", "replace")
            found.append((name, head[offset : offset + _BEGINNING]))
            if len(found) == _MOST_MEMBERS:
                break
    except ScanError:
        # The object is cut off or is none: what came before is all that can be told.
        return found
    return found


def _table(members: Sequence[tuple[str, bytes]]) -> Kind | None:
    values = dict(members)
    texts = [name.lower() for name, value in members if _TEXTS.match(value)]
    numbered = [_NUMBERED.match(value) for value in values.values()]
    if all(
        match or _EMPTY.match(value) for match, value in zip(numbered, values.values(), strict=True)
    ) and any(numbered):
        return Kind("a table written by columns, each as an object of numbered values", _BY_ROWS)
    if len(texts) > 1 and any(name in _NO_LISTS for name in texts):
        return Kind("a table written by columns, each as a list of values", _BY_ROWS)
    if "columns" in values and _LISTS.match(values.get("data", b"")):
        return Kind("a table written as lists of values beside the names of its columns", _BY_ROWS)
    if all(name.isdecimal() and value.startswith(b"{") for name, value in members):
        return Kind("a table written as an object of numbered rows", _BY_ROWS)
    named = [_FIRST_NAME.match(value) for value in values.values()]
    if len(named) > 1 and all(match and match[1].decode("utf-8", "replace") in KNOWN for match in named):
        return Kind("an object of rows by name", "write the rows alone, as a list or one per line")
    return None


def _tool_file(members: Sequence[tuple[str, bytes]]) -> Kind | None:
    names = {name for name, _ in members}
    if "cells" in names and (names & {"nbformat", "metadata"} or members[0][0] == "cells"):
        return Kind("a Jupyter notebook", "give the file with the rows")
    if names & {"model_type", "architectures"} or {"added_tokens", "pre_tokenizer"} <= names:
        return Kind("a configuration file of a model", "give the file with the rows")
    return None


def _server_error(members: Sequence[tuple[str, bytes]]) -> Kind | None:
    values = dict(members)
    error = next((values[name] for name in ("error", "errors", "message") if name in values), None)
    if error is None or not values.keys() <= _OF_ERRORS or values.keys() == {"message"}:
        return None
    text = _TEXT.match(error)
    shown = excerpt((text[1] if text else error).decode("utf-8", "replace"), _SHOWN)
    return Kind(
        f"an error that a server gave in place of the file: {shown!r}",
        "give an address that answers with the file, and the rights to read it",
    )


_RULES = (_table, _tool_file, _server_error)
# In a row these columns hold one value. The others hold a list in every row, so a list there tells nothing.
_NO_LISTS = (KNOWN | {name for pair in FURTHER_PAIRS for name in pair}) - {*MESSAGES, *TOOLS, HISTORY}
