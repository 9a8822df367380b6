"""Rows of a table of separated values: RFC 4180, with the separator that its header shows."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from finetune_trainer.data.rows.columns import KNOWN
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.data.rows.container import Layout
    from finetune_trainer.data.rows.decompression import PlainBytes

_SKIP = 1 << 20


def csv_rows(
    source: PlainBytes, name: str, layout: Layout, maximum: int
) -> Iterator[tuple[int, dict[str, str] | RowRejected, int]]:
    """Yield number (header and blank lines not counted), values by column, and bytes of the file consumed.

    A row of more than `maximum` bytes is refused. Raises StageError(MalformedDataset) for a header with equal
    names, and for a quote that opens a field which does not end.
    """
    lines = _Lines(source, layout.start, maximum)
    csv.field_size_limit(maximum)
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    try:
        columns = _columns(next(reader), name)
    except csv.Error as error:
        raise StageError(
            Reason.MALFORMED_DATASET, f"the header of {name} must be a line of column names: {error}"
        ) from error
    number = 0
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            if lines.ended or "field larger" in str(error):
                raise StageError(
                    Reason.MALFORMED_DATASET,
                    f"{name} must close every quote, found none behind the one opened in row {number} "
                    f"(line {first_line}); double the quotes inside quoted fields",
                ) from error
            through = f"lines {first_line} to {reader.line_num}: " if reader.line_num > first_line else ""
            yield number, _rejected(first_line, f"{through}quotes: {error}"), source.position
            continue
        too_large = lines.too_large and lines.too_large & set(range(first_line, reader.line_num + 1))
        if not fields and not too_large:
            continue
        number += 1
        value: dict[str, str] | RowRejected
        if too_large:
            lines.too_large -= too_large
            value = RowRejected(RowReason.ROW_TOO_LARGE, f"line {first_line}", f"more than {maximum} bytes")
        elif len(fields) != len(columns):
            value = _rejected(
                first_line, f"must have {len(columns)} fields as the header has, found {len(fields)}"
            )
        else:
            value = _row(columns, fields, first_line)
        yield number, value, source.position


def _rejected(line: int, detail: str) -> RowRejected:
    return RowRejected(RowReason.INVALID_CSV, f"line {line}", detail)


def _columns(header: list[str], name: str) -> list[str]:
    """Column names without white space around them; known ones in small letters, as spreadsheets have them."""
    columns = [column.strip() for column in header]
    columns = [column.lower() if column.lower() in KNOWN else column for column in columns]
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise StageError(
            Reason.MALFORMED_DATASET, f"the columns of {name} must have different names, found two {twice!r}"
        )
    return columns


def _row(columns: list[str], fields: list[str], line: int) -> dict[str, str] | RowRejected:
    row = dict(zip(columns, fields, strict=True))
    for column, field in row.items():
        try:
            field.encode("utf-8")
        except UnicodeEncodeError as error:
            return RowRejected(
                RowReason.INVALID_ENCODING,
                f"line {line}",
                f"column {column!r}: character {error.start + 1} is not UTF-8",
            )
    return row


class _Lines:
    """A file's lines as text. Bytes that are not UTF-8 become lone surrogates, which no UTF-8 text holds.

    Of a line that is too large only its quotes are given, so that the rows around it stay what they are; its
    number is put into `too_large`.
    """

    def __init__(self, source: PlainBytes, start: int, maximum: int) -> None:
        source.read(start)
        self._source = source
        self._maximum = maximum
        self._number = 0
        self.too_large: set[int] = set()
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._source.readline(self._maximum + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self._number += 1
        if len(line) > self._maximum and not line.endswith(b"\n"):
            self.too_large.add(self._number)
            quotes = line.count(b'"')
            while line and not line.endswith(b"\n"):
                line = self._source.readline(_SKIP)
                quotes += line.count(b'"')
            return '"\n' if quotes % 2 else "\n"
        return line.decode("utf-8", "surrogateescape")
