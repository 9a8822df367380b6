"""Detects the layout of a dataset file from its first bytes; file names and extensions are not reliable."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.columns import KNOWN, LISTS_OF_ROWS, MESSAGES
from finetune_trainer.data.rows.documents import document_kind, first_members
from finetune_trainer.data.rows.encodings import wide_encoding
from finetune_trainer.data.rows.file_kinds import file_kind, unknown_binary
from finetune_trainer.data.rows.json_scanner import JsonScanner, ScanError
from finetune_trainer.data.rows.kind import Kind
from finetune_trainer.data.rows.strict_json import JsonError, parse_json
from finetune_trainer.data.rows.text_kinds import text_kind
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEAD_LENGTH = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_DELIMITERS = (",", "\t", ";")
_RECORDS = 6
# Names have few words and no punctuation of sentences. An empty one heads a column of row numbers.
_NAME = re.compile(r"(?:[^\W_]|_)?[\w$#@&()/\[\]-]*(?:[ .:][\w$#@&()/\[\]-]+){0,4}", re.UNICODE)
_LINES_LOOKED_AT = 50
_PARQUET = b"PAR1"
_LIST_OF_OBJECTS = re.compile(rb"\[\s*[{\]]")


class Container(Enum):
    """The ways in which a file can hold rows."""

    LINES = "one JSON object a line"
    ARRAY = "a JSON array of objects"
    OBJECTS = "JSON objects one after another"
    MEMBER = "a JSON object that holds a list of objects"
    CSV = "a table of separated values with a header"
    PARQUET = "a Parquet file"
    EMPTY = "nothing"


@dataclass(frozen=True)
class Layout:
    """A container, the byte offset `start` of its first value or list of rows, and the `delimiter` of a table."""

    container: Container
    start: int = 0
    delimiter: str = ","


class ForeignFileError(Exception):
    """A file that is known to hold no rows. `foreign_file` turns it into the error of a stage."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind.what)
        self.kind = kind


def recognize(head: bytes, *, whole: bool) -> Layout:
    """Detect the layout from a file's first HEAD_LENGTH decompressed bytes; `whole` says that there are no more.

    Text of unknown layout counts as lines of JSON. Raises ForeignFileError for files that are known to be something else.
    """
    start = _first_text(head)
    if start == len(head):
        return Layout(Container.EMPTY if whole else Container.LINES)
    if head.startswith(_PARQUET):
        return Layout(Container.PARQUET)
    kind = file_kind(head)
    if kind is not None:
        raise ForeignFileError(kind)
    encoding = wide_encoding(head)
    if encoding is not None:
        raise ForeignFileError(
            Kind(f"text in {encoding}", f"save it as UTF-8 (`iconv -f {encoding} -t UTF-8`)")
        )
    openings = {ord("["): _array_or_lines, ord("{"): _objects_or_lines}
    if head[start] in openings:
        return openings[head[start]](head, start, whole)
    return _table_or_lines(head, start)


def is_list_of_messages(value: Any) -> bool:
    """Return True for a row that is a bare list of messages: objects, the first with a role and a content."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    names = {name.lower() for name in value[0]}
    return bool(names & {"role", "from"}) and bool(names & {"content", "value", "tool_calls"})


def foreign_file(name: str, kind: Kind, codec: str | None) -> StageError:
    """Return the error for a file of another kind; `codec` is the compression around it, if any."""
    packed = "" if codec is None else f" inside {codec}"
    return StageError(
        Reason.MALFORMED_DATASET,
        f"{name} must be JSONL, a JSON array, Parquet or CSV, plain or compressed with gzip or zstd, "
        f"found {kind.what}{packed}: {kind.remedy}",
    )


def _first_text(head: bytes) -> int:
    start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    while start < len(head) and head[start] in _SPACE:
        start += 1
    return start


def _table_or_lines(head: bytes, start: int) -> Layout:
    if any(_lines_are_rows(head[start:].splitlines())):
        return Layout(Container.LINES)
    text = head[start:].decode("utf-8", "replace")
    delimiter = _delimiter(text)
    if delimiter is not None:
        return Layout(Container.CSV, start, delimiter)
    if _lines_are_json(head[start:].splitlines()):
        return Layout(Container.LINES)
    kind = unknown_binary(head) or text_kind(text)
    if kind is not None:
        raise ForeignFileError(kind)
    delimiter = _likely_delimiter(text)
    if delimiter is not None:
        return Layout(Container.CSV, start, delimiter)
    return Layout(Container.LINES)


def _array_or_lines(head: bytes, start: int, whole: bool) -> Layout:  # noqa: FBT001 -- called through a table
    """Return an array, unless it ends on the first line and more follows, or most lines are complete rows."""
    line, _, others = head[start:].partition(b"\n")
    alone = not others.strip()
    if line.strip() == b"[" or (alone and not whole):
        array = True
    elif _is_json(line):
        # One line that is a list of messages is a file of one conversation.
        array = alone and not is_list_of_messages(parse_json(line.decode("utf-8")))
    else:
        verdicts = _lines_are_rows(others.splitlines())
        array = sum(verdicts) * 2 <= len(verdicts)
    return Layout(Container.ARRAY, start) if array else Layout(Container.LINES)


def _objects_or_lines(head: bytes, start: int, whole: bool) -> Layout:  # noqa: FBT001 -- as above
    """Return one object a line, unless the first object spans several lines, or is the only one and holds the rows."""
    line, _, others = head[start:].partition(b"\n")
    alone = whole and not others.strip()
    if _is_json(line) and not alone:
        return Layout(Container.LINES)
    first = _first_value(head, start)
    several_lines = b"\n" in first
    verdicts = _lines_are_rows(others.splitlines())
    if not (several_lines and _is_json(first)) and sum(verdicts) * 2 > len(verdicts):
        return Layout(Container.LINES)
    follows = head[start + len(first) :].strip(_SPACE) if first else b""
    if not follows:
        kind = document_kind(first_members(head, start))
        if kind is not None:
            raise ForeignFileError(kind)
    whole_file = not follows if first else bool(others)
    list_start = _list_of_rows(head, start, alone=whole_file)
    if list_start is not None:
        return Layout(Container.MEMBER, list_start)
    joined = follows.startswith(b"{") and _is_json(first)
    if joined or (several_lines and (_is_json(first) or not any(verdicts))):
        return Layout(Container.OBJECTS, start)
    return Layout(Container.LINES)


def _first_value(head: bytes, start: int) -> bytes:
    """Return the value that begins at `start`, or b"" if it does not end within the head."""
    try:
        return JsonScanner(io.BytesIO(head), HEAD_LENGTH, start).value().raw or b""
    except ScanError:
        return b""


def _list_of_rows(head: bytes, start: int, *, alone: bool) -> int | None:
    """Return the offset of the list of rows in the object that begins at `start`; None if the object is a row.

    An object that is `alone` in its file may call the list as it likes, if its first item has known columns.
    """
    members = []
    try:
        for raw, offset in JsonScanner(io.BytesIO(head), HEAD_LENGTH, start).members():
            name = raw.strip(b'"').decode("utf-8", "replace")
            members.append((name, offset))
            if name in LISTS_OF_ROWS and _LIST_OF_OBJECTS.match(head, offset):
                return offset
            if name in KNOWN and not (alone and _holds_rows(head, offset)):
                return None
    except ScanError:
        # The object is cut off or is none. Whoever reads it later reports the place.
        if not members:
            return None
    return next((offset for _, offset in members if alone and _holds_rows(head, offset)), None)


def _holds_rows(head: bytes, offset: int) -> bool:
    """Return True if a list begins at `offset` whose first item is a row and not a message."""
    if head[offset : offset + 1] != b"[":
        return False
    try:
        raw = next(JsonScanner(io.BytesIO(head), HEAD_LENGTH, offset).items()).raw
        first = parse_json((raw or b"").decode("utf-8"))
    except (ScanError, JsonError, UnicodeDecodeError, StopIteration):
        return False
    if isinstance(first, dict):
        known = [name for name in first if name in KNOWN]
        return not is_list_of_messages([first]) and (
            len(known) > 1 or any(name in MESSAGES for name in known)
        )
    return is_list_of_messages(first)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode("utf-8"))
    except (JsonError, UnicodeDecodeError):
        return False
    return True


def _lines_are_rows(lines: Sequence[bytes]) -> list[bool]:
    """Return for each of the first non-blank lines whether it is a row; the last may be cut off."""
    looked_at = [line for line in lines[: 2 * _LINES_LOOKED_AT] if line.strip()][:_LINES_LOOKED_AT]
    return [_is_row(line.strip()) for line in looked_at]


def _lines_are_json(lines: Sequence[bytes]) -> bool:
    """Return True if most of the first non-blank lines are JSON of any type, which is no table then."""
    looked_at = [line for line in lines[:_LINES_LOOKED_AT] if line.strip()]
    return sum(map(_is_json, looked_at)) * 2 > len(looked_at)


def _is_row(line: bytes) -> bool:
    if not line.startswith((b"{", b"[")):
        return False
    try:
        value = parse_json(line.decode("utf-8"))
    except (JsonError, UnicodeDecodeError):
        return False
    return isinstance(value, dict) or is_list_of_messages(value)


def _delimiter(text: str) -> str | None:
    """Return the separator of this text's first line if it is a header that names a known column, else None."""
    for delimiter, names, *_ in _splits(text):
        if any(name.lower() in KNOWN for name in names):
            return delimiter
    return None


def _likely_delimiter(text: str) -> str | None:
    """Return the separator if the first line names two or more columns, and the second has as many fields.

    Raises ForeignFileError for a table that begins with a row in place of a header.
    """
    for delimiter, names, *records in _splits(text):
        if len(names) < 2 or not records or len(records[0]) != len(names):
            continue
        if all(_NAME.fullmatch(name) for name in names):
            return delimiter
        if len(records) > 1 and all(len(record) == len(names) for record in records):
            raise ForeignFileError(
                Kind(
                    "a table without the names of its columns",
                    "begin it with a line of names, such as prompt,completion",
                )
            )
    return None


def _splits(text: str) -> Iterator[tuple[str, list[str], *tuple[list[str], ...]]]:
    """Yield each separator, the names in the first line, and the fields of the next records."""
    for delimiter in _DELIMITERS:
        records: list[list[str]] = []
        # What csv cannot read is no evidence; reading the table reports it.
        with contextlib.suppress(csv.Error):
            records.extend(islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), _RECORDS))
        if records:
            yield delimiter, [name.strip() for name in records[0]], *records[1:]
