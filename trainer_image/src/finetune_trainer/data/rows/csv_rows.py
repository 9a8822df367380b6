"""Reads rows of separated values as RFC 4180 defines them, with the separator that the header shows."""

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
    """Yield each row's number, its values by column, and the bytes of the file consumed so far.

    Header and blank lines are not counted. A row of more than `maximum` bytes is rejected.
    Raises StageError(MalformedDataset) if two columns have the same name, or if a quoted field does not end.
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
                    f"{name} must close every quote, found no end of the quote opened in row {number} "
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
                first_line, f"must have {len(columns)} fields like the header, found {len(fields)}"
            )
        else:
            value = _row(columns, fields, first_line)
        yield number, value, source.position


def _rejected(line: int, detail: str) -> RowRejected:
    return RowRejected(RowReason.INVALID_CSV, f"line {line}", detail)


def _columns(header: list[str], name: str) -> list[str]:
    """Return the column names, stripped; known names in lower case, since spreadsheets often capitalize them."""
    columns = [column.strip() for column in header]
    columns = [column.lower() if column.lower() in KNOWN else column for column in columns]
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise StageError(
            Reason.MALFORMED_DATASET,
            f"the columns of {name} must have different names, found {twice!r} twice",
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
    """Lines of a file as text. Bytes that are not UTF-8 become lone surrogates, which UTF-8 text never contains.

    A line that is too large is reduced to its quotes, so that the rows around it keep their borders. Its number goes
    into `too_large`.
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
