"""Reads the rows of dataset files one by one, whatever the files' format and size.

What a file is, is decided by its first bytes before any row is read. A file without rows is named once.

The content decides the format: JSON lines, a JSON array, JSON objects one after another, an object that holds a list
of rows, CSV (also with tabs or semicolons) and Parquet. Each may be compressed with gzip or zstd.
A row that cannot be read is rejected and costs only itself. If nothing after a fault can be trusted, reading ends
with a StageError.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.columns import DESCRIPTIONS, LIST_OF_MESSAGES
from finetune_trainer.data.rows.container import (
    BYTE_ORDER_MARK,
    HEAD_LENGTH,
    Container,
    ForeignFileError,
    Layout,
    foreign_file,
    is_list_of_messages,
    recognize,
)
from finetune_trainer.data.rows.decompression import Budget, PlainBytes, open_plain
from finetune_trainer.data.rows.json_scanner import JsonScanner, Place, ScanError
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import JsonError, kind_of, parse_json
from finetune_trainer.data.rows.unreadable import unreadable_kind
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

MAXIMUM_ROW_BYTES = 8 << 20
_log = logging.getLogger(__name__)
_SPACE = b" \t\r\n"
_REST_OF_OBJECT = 1 << 20
_ROWS_TRIED = 50
_FEWEST_ROWS = 10
_TOO_LARGE = RowRejected(RowReason.ROW_TOO_LARGE, "row", f"more than {MAXIMUM_ROW_BYTES} bytes")

# A row's number within its file, its object or rejection, and the bytes of the file consumed so far.
FileRow = tuple[int, dict[str, Any] | RowRejected, int]


@dataclass(frozen=True)
class Row:
    """One row: its 1-based number, and its object or the reason why there is none.

    Numbers continue over all files. In a file of lines, the number is the line number, blank lines included. In other
    files, rows are counted; the header of a table is not a row. `offset` is the bytes of all files read so far.
    """

    number: int
    value: dict[str, Any] | RowRejected
    offset: int


def read_rows(
    paths: Sequence[Path], maximum_bytes: int | None = None, spool: Path | None = None
) -> Iterator[Row]:
    """Yield the rows of all files in order, in memory that does not grow with their number.

    All compressed files together may unpack to `maximum_bytes`. A compressed Parquet file is unpacked to a temporary
    file in the folder `spool` (by default next to the file), because Parquet is read from its end.

    Raises StageError(MalformedDataset) if a file has none of the formats listed above, is cut off, or is broken between
    its rows. Raises StageError(DatasetTooLarge) if the files unpack to more.
    """
    budget = Budget() if maximum_bytes is None else Budget(maximum_bytes)
    first_number = first_byte = 0
    for path in paths:
        number = 0
        if len(paths) > 1:
            _log.info("rows from %d on are those of %s", first_number + 1, path.name)
        for number, value, offset in _file_rows(path, budget, spool or path.parent):
            yield Row(first_number + number, value, first_byte + offset)
        first_number += number
        first_byte += path.stat().st_size


def until_fault(rows: Iterable[Row], faults: list[StageError]) -> Iterator[Row]:
    """Yield the rows before the place where the files are broken, and append the error there to `faults`.

    Readers that look ahead need this: an error raised at once would hide rows that are read but not yet processed.
    """
    try:
        yield from rows
    except StageError as error:
        faults.append(error)


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse one line; a bare list of messages becomes the only member of an object.

    Raises RowRejected with InvalidEncoding, InvalidJson or NotAnObject.
    """
    return _parse_object(line, lambda before: f"column {len(before) + 1}", "line")


def require_rows_file(path: Path) -> None:
    """Raise StageError(MalformedDataset) if the beginning of a file shows that it holds no rows, and says what it is."""
    _recognize(path)


def why_empty(path: Path) -> str:
    """Return what a file without rows holds instead. Raises StageError(MalformedDataset) like `read_rows`."""
    layout, head = _recognize(path)
    found = {
        Container.EMPTY: "only white space" if head else "an empty file",
        Container.LINES: "only white space",
        Container.CSV: "the header of a table without rows",
        Container.PARQUET: "a Parquet table without rows",
    }
    return found.get(layout.container, "an empty list")


def _recognize(path: Path) -> tuple[Layout, bytes]:
    """Return the layout of a file and its first bytes. Raises StageError(MalformedDataset) if it has no rows."""
    with open_plain(path, Budget()) as source:
        head = source.read(HEAD_LENGTH)
        codec = source.codec
    whole = len(head) < HEAD_LENGTH
    try:
        layout = recognize(head, whole=whole)
        _require_readable(head, layout, whole=whole)
    except ForeignFileError as found:
        raise foreign_file(path.name, found.kind, codec) from found
    return layout, head


def _require_readable(head: bytes, layout: Layout, *, whole: bool) -> None:
    """Raise ForeignFileError if most of the first rows cannot be read: the file is something else then."""
    if layout.container in {Container.EMPTY, Container.PARQUET}:
        return
    sample = _sampled_lines(head, whole=whole) if layout.container is Container.LINES else []
    if layout.container is not Container.LINES:
        source = PlainBytes(io.BytesIO(head), io.BytesIO(head), None)
        try:
            sample.extend(
                (number, value)
                for number, value, _ in islice(_rows_of(source, "", layout, head), _ROWS_TRIED)
            )
        except StageError:
            # The head ends within a row, or the file is broken here: reading it reports the place.
            _log.debug("the rows after row %d are not tried", len(sample))
        if not whole and len(sample) < _ROWS_TRIED:
            sample = sample[:-1]
    unreadable = [
        (number, value)
        for number, value in sample
        if isinstance(value, RowRejected) and value.reason is not RowReason.ROW_TOO_LARGE
    ]
    # A few long rows at the beginning of a large file say little about the others.
    enough = whole or len(sample) >= _FEWEST_ROWS or len(unreadable) == len(sample)
    if enough and len(unreadable) * 2 > len(sample):
        raise ForeignFileError(unreadable_kind(head.decode("utf-8", "replace"), unreadable, len(sample)))


def _sampled_lines(head: bytes, *, whole: bool) -> list[tuple[int, dict[str, Any] | RowRejected]]:
    """Return number and outcome of lines that lie evenly over `head`."""
    lines = head.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    complete = lines if whole else lines[:-1]
    filled = [(number, line) for number, line in enumerate(complete, start=1) if line.strip(_SPACE)]
    step = max(1, len(filled) // _ROWS_TRIED)
    return [(number, _outcome(line)) for number, line in filled[::step]]


def _outcome(line: bytes) -> dict[str, Any] | RowRejected:
    try:
        return parse_line(line.rstrip(_SPACE))
    except RowRejected as rejection:
        return rejection


def _file_rows(path: Path, budget: Budget, spool: Path) -> Iterator[FileRow]:
    layout, head = _recognize(path)
    if layout.container is Container.EMPTY:
        return
    if layout.container is Container.PARQUET:
        # Most datasets do not need the libraries that read tables.
        from finetune_trainer.data.rows.parquet import parquet_rows  # noqa: PLC0415

        yield from parquet_rows(path, budget, spool)
        return
    with open_plain(path, budget) as source:
        yield from _rows_of(source, path.name, layout, head)


def _rows_of(source: PlainBytes, name: str, layout: Layout, head: bytes) -> Iterator[FileRow]:
    if layout.container is Container.LINES:
        yield from _lines(source)
    elif layout.container is Container.CSV:
        from finetune_trainer.data.rows.csv_rows import csv_rows  # noqa: PLC0415 -- as above

        yield from csv_rows(source, name, layout, MAXIMUM_ROW_BYTES)
    else:
        yield from _values(source, name, layout, head)


def _lines(source: PlainBytes) -> Iterator[FileRow]:
    number = 0
    while line := source.readline(MAXIMUM_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > MAXIMUM_ROW_BYTES and not line.endswith(b"\n"):
            while (line := source.readline(HEAD_LENGTH)) and not line.endswith(b"\n"):
                pass
            yield number, _TOO_LARGE, source.position
        elif line.strip(_SPACE):
            yield number, _outcome(line), source.position


def _values(source: PlainBytes, name: str, layout: Layout, head: bytes) -> Iterator[FileRow]:
    scanner = JsonScanner(source, MAXIMUM_ROW_BYTES, layout.start)
    values = scanner.values() if layout.container is Container.OBJECTS else scanner.items()
    number = 0
    try:
        for number, found in enumerate(values, start=1):
            if found.raw is None:
                yield number, _TOO_LARGE, source.position
                continue
            try:
                value: dict[str, Any] | RowRejected = _parse_object(
                    found.raw, _places_after(found.place), str(found.place)
                )
            except RowRejected as rejection:
                value = rejection
            yield number, value, source.position
        _require_end(layout, scanner, head)
    except ScanError as error:
        raise StageError(
            Reason.MALFORMED_DATASET,
            f"{name} must be {layout.container.value}, found a fault after row {number} at {error.place}: "
            f"{error.message}",
        ) from error


def _require_end(layout: Layout, scanner: JsonScanner, head: bytes) -> None:
    """Check the text after the last row. Raises ScanError."""
    if layout.container is Container.ARRAY and scanner.peek():
        raise ScanError(scanner.place(), "nothing may follow the array")
    if layout.container is Container.MEMBER:
        _require_object(head[: layout.start], scanner)


def _require_object(before: bytes, scanner: JsonScanner) -> None:
    """Check that the text around the list of rows is JSON without a second list. Raises ScanError."""
    place = scanner.place()
    try:
        rest = scanner.rest(_REST_OF_OBJECT)
        value = parse_json((before.removeprefix(BYTE_ORDER_MARK) + b"[]" + rest).decode("utf-8"))
    except (JsonError, UnicodeDecodeError) as error:
        raise ScanError(place, "the text around the list of rows must be JSON") from error
    others = [
        key
        for key, item in value.items()
        if isinstance(item, list) and item and isinstance(item[0], dict) and key not in DESCRIPTIONS
    ]
    if others:
        raise ScanError(
            place,
            f"there must be one list of rows, found another in {others[0]!r}: move it to a separate file",
        )


def _places_after(start: Place) -> Callable[[str], str]:
    return lambda before: str(start.after(before))


def _parse_object(raw: bytes, locate: Callable[[str], str], whole: str) -> dict[str, Any]:
    """Parse a row. `locate` names the place after a text; `whole` is the place of the row."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1}" if whole == "line" else locate(raw[: error.start].decode("utf-8"))
        raise RowRejected(RowReason.INVALID_ENCODING, place, f"not UTF-8: {error.reason}") from error
    try:
        value = parse_json(text)
    except JsonError as error:
        place = whole if error.position is None else locate(text[: error.position])
        raise RowRejected(RowReason.INVALID_JSON, place, error.message) from error
    if is_list_of_messages(value):
        return {LIST_OF_MESSAGES: value}
    if not isinstance(value, dict):
        raise RowRejected(RowReason.NOT_AN_OBJECT, whole, f"found a JSON {kind_of(value)}")
    return value
