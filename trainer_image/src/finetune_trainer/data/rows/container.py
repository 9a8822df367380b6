"""Detects the layout of a dataset file from its first bytes; file names and extensions are not reliable."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from finetune_trainer.data.rows.columns import KNOWN, LISTS_OF_ROWS
from finetune_trainer.data.rows.json_scanner import JsonScanner, ScanError
from finetune_trainer.data.rows.strict_json import JsonError, parse_json
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD_LENGTH = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_DELIMITERS = (",", "\t", ";")
_LONGEST_NAME = 64
_LINES_LOOKED_AT = 50
_PARQUET = b"PAR1"
_FOREIGN = (
    (rb"PARE", "an encrypted Parquet file"),
    (rb"ARROW1|\xff\xff\xff\xff[^\xff]{3}\x00", "an Arrow file"),
    (rb"ORC", "an ORC file"),
    (rb"Obj\x01", "an Avro file"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
    (rb"PK\x03\x04", "a zip archive or spreadsheet"),
    (rb"7z\xbc\xaf", "a 7z archive"),
    (rb"BZh[1-9]1AY", "a bzip2 file"),
    (rb"\xfd7zXZ", "an xz file"),
    (rb"\x04\x22\x4d\x18", "an lz4 file"),
    (rb"\x1f\x8b", "a file compressed twice"),
    (rb"\x28\xb5\x2f\xfd", "a file compressed twice"),
    (rb"(?s).{257}ustar", "a tar archive"),
    (rb"%PDF", "a PDF"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"\x7fELF", "a program"),
    (rb"GGUF", "a GGUF model"),
    (rb"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
    (rb"(?i)\s*<(!doctype|html|head|body)", "an HTML page, often a login or error page in place of the file"),
    (rb"\s*<", "an XML or HTML document"),
)
_UTF_16 = re.compile(
    rb"\xff\xfe|\xfe\xff|[^\x00]\x00[^\x00]\x00|\x00[^\x00]\x00[^\x00]|[^\x00]\x00{3}[^\x00]\x00{3}|\x00{3}[^\x00]\x00{3}"
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class Container(Enum):
    """The ways in which a file can hold rows."""

    LINES = "one JSON object a line"
    ARRAY = "a JSON array of objects"
    OBJECTS = "JSON objects one after another"
    MEMBER = "a JSON object that holds a list of objects"
    CSV = "a table of separated values with a header"
    PARQUET = "a Parquet file"
    UTF_16 = "text in UTF-16 or UTF-32"
    EMPTY = "nothing"


@dataclass(frozen=True)
class Layout:
    """A container, the byte offset `start` of its first value or list of rows, and the `delimiter` of a table."""

    container: Container
    start: int = 0
    delimiter: str = ","


def recognize(head: bytes, name: str, *, whole: bool) -> Layout:
    """Detect the layout from a file's first HEAD_LENGTH decompressed bytes; `whole` says that there are no more.

    Text of unknown layout counts as lines of JSON, so that each line gets its own verdict.
    Raises StageError(MalformedDataset) for files that are known to be something else.
    """
    start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    while start < len(head) and head[start] in _SPACE:
        start += 1
    if start == len(head):
        return Layout(Container.EMPTY if whole else Container.LINES)
    if head.startswith(_PARQUET):
        return Layout(Container.PARQUET)
    if _UTF_16.match(head):
        return Layout(Container.UTF_16)
    openings = {ord("["): _array_or_lines, ord("{"): _objects_or_lines}
    if head[start] in openings:
        return openings[head[start]](head, start, whole)
    return _table_or_lines(head, start, name)


def _table_or_lines(head: bytes, start: int, name: str) -> Layout:
    if any(_lines_are_objects(head[start:].splitlines())):
        return Layout(Container.LINES)
    for pattern, what in _FOREIGN:
        if re.match(pattern, head):
            raise _foreign(name, what)
    delimiter = _delimiter(head[start:])
    if delimiter is not None:
        return Layout(Container.CSV, start, delimiter)
    control = _CONTROLS.search(head)
    if control is not None:
        raise _foreign(name, f"binary data (byte {control.start() + 1} is {head[control.start()]:#04x})")
    return Layout(Container.LINES)


def _array_or_lines(head: bytes, start: int, whole: bool) -> Layout:  # noqa: FBT001 -- called through a table
    """Return an array, unless it ends on the first line and more follows, or most lines are complete objects."""
    line, _, others = head[start:].partition(b"\n")
    if line.strip() == b"[" or (not others and not whole):
        array = True
    elif _is_json(line):
        array = not others.strip()
    elif whole and not others.strip():
        array = _items_end(head, start)
    else:
        verdicts = _lines_are_objects(others.splitlines())
        array = sum(verdicts) * 2 <= len(verdicts)
    return Layout(Container.ARRAY, start) if array else Layout(Container.LINES)


def _items_end(head: bytes, start: int) -> bool:
    """Return True if the array that begins at `start` is well-formed, whatever its items contain."""
    scanner = JsonScanner(io.BytesIO(head), HEAD_LENGTH, start)
    try:
        for _ in scanner.items():
            pass
        return not scanner.peek()
    except ScanError:
        return False


def _objects_or_lines(head: bytes, start: int, whole: bool) -> Layout:  # noqa: FBT001 -- as above
    """Return one object a line, unless the first object spans several lines, or is the only one and holds the rows."""
    line, _, others = head[start:].partition(b"\n")
    alone = whole and not others.strip()
    if _is_json(line) and not alone:
        return Layout(Container.LINES)
    first = _first_value(head, start)
    several_lines = b"\n" in first
    verdicts = _lines_are_objects(others.splitlines())
    if not (several_lines and _is_json(first)) and sum(verdicts) * 2 > len(verdicts):
        return Layout(Container.LINES)
    list_start = _list_of_rows(head, start)
    if list_start is not None:
        return Layout(Container.MEMBER, list_start)
    if several_lines and (_is_json(first) or not any(verdicts)):
        return Layout(Container.OBJECTS, start)
    return Layout(Container.LINES)


def _first_value(head: bytes, start: int) -> bytes:
    """Return the value that begins at `start`, or b"" if it does not end within the head."""
    try:
        return JsonScanner(io.BytesIO(head), HEAD_LENGTH, start).value().raw or b""
    except ScanError:
        return b""


def _list_of_rows(head: bytes, start: int) -> int | None:
    """Return the offset of the list of rows in the object that begins at `start`; None if the object is a row."""
    try:
        for raw, offset in JsonScanner(io.BytesIO(head), HEAD_LENGTH, start).members():
            name = raw.strip(b'"').decode("utf-8", "replace")
            if name in KNOWN:
                return None
            if name in LISTS_OF_ROWS and re.match(rb"\[\s*[{\]]", head[offset:]):
                return offset
    except ScanError:
        # The object is cut off or is none. Whoever reads it later reports the place.
        return None
    return None


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode("utf-8"))
    except (JsonError, UnicodeDecodeError):
        return False
    return True


def _lines_are_objects(lines: Sequence[bytes]) -> list[bool]:
    """Return for each of the first non-blank lines whether it is a JSON object; the last may be cut off."""
    looked_at = [line for line in lines[: 2 * _LINES_LOOKED_AT] if line.strip()][:_LINES_LOOKED_AT]
    return [line.lstrip().startswith(b"{") and _is_json(line) for line in looked_at]


def _foreign(name: str, what: str) -> StageError:
    return StageError(
        Reason.MALFORMED_DATASET,
        f"{name} must be JSONL, a JSON array, Parquet or CSV, plain or compressed with gzip or zstd, found {what}",
    )


def _delimiter(text: bytes) -> str | None:
    """Return the separator if this text's first line is the header of a table, else None.

    A header names a known column. It may also name two or more others if the second line has as many fields.
    """
    decoded = text.decode("utf-8", "replace")
    for delimiter in _DELIMITERS:
        rows = csv.reader(io.StringIO(decoded, newline=""), delimiter=delimiter)
        try:
            names = [name.strip() for name in next(rows)]
            if any(name.lower() in KNOWN for name in names):
                return delimiter
            second = next(rows, [])
        except csv.Error:
            continue
        plausible = all(name.isprintable() and len(name) <= _LONGEST_NAME for name in names)
        if len(names) > 1 and plausible and len(second) == len(names):
            return delimiter
    return None
