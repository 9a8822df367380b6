"""Rows of a Parquet file, read batch by batch."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.rows.decompression import Budget, open_plain
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 512
_COPY = 1 << 20


def parquet_rows(
    path: Path, budget: Budget, spool: Path
) -> Iterator[tuple[int, dict[str, Any] | RowRejected, int]]:
    """Yield number, values by column, and a share of the file's bytes in proportion to the rows read.

    Members of structs that are null are left out: Parquet gives every struct of a column the members of all of
    them. Dates become text in ISO 8601; NaN is no value. A row with bytes in a text column that are not UTF-8 is
    refused; binary values, such as images, are left as bytes. Raises StageError(MalformedDataset).
    """
    size = path.stat().st_size
    number = 0
    with _plain_file(path, budget, spool) as file, _arrow_errors(path.name):
        table = pq.ParquetFile(file, buffer_size=_COPY, pre_buffer=False)
        _require_distinct_names(table.schema_arrow)
        total = max(1, table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=_batch_rows(table.metadata)):
            for value in _values(batch):
                number += 1
                yield number, value, size * number // total


def _batch_rows(metadata: Any) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _values(batch: Any) -> list[dict[str, Any] | RowRejected]:
    try:
        rows = batch.to_pylist(maps_as_pydicts="lossy")
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [RowRejected(RowReason.INVALID_ENCODING, _not_utf8(batch), "not UTF-8")]
        return [value for row in range(batch.num_rows) for value in _values(batch.slice(row, 1))]
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _not_utf8(batch: Any) -> str:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError:
            return str(name)
    return "row"


def _plain(value: Any) -> Any:
    """The value in JSON's types; bytes that are UTF-8 as text, since old writers mark text so; others as they are."""
    if isinstance(value, dict):
        value = {str(_plain(key)): _plain(item) for key, item in value.items() if item is not None}
    elif isinstance(value, list | tuple):
        value = [_plain(item) for item in value]
    elif isinstance(value, float):
        value = value if math.isfinite(value) else None
    elif isinstance(value, datetime.date | datetime.time):
        value = value.isoformat()
    elif isinstance(value, decimal.Decimal):
        value = str(value)
    elif isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            value = value.decode("utf-8")
    return value


def _require_distinct_names(fields: Any) -> None:
    """Refuse equal names in the table or one of its structs: rows would lose all but the last."""
    names = [field.name for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise pa.ArrowInvalid(f"two columns or members named {twice!r}")
    for field in fields:
        inner = field.type
        while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
            inner = inner.value_type
        if pa.types.is_struct(inner):
            _require_distinct_names([inner.field(index) for index in range(inner.num_fields)])


@contextlib.contextmanager
def _plain_file(path: Path, budget: Budget, spool: Path) -> Iterator[Path]:
    """The file itself, or where it is compressed a temporary unpacked copy."""
    with open_plain(path, budget) as source:
        if source.codec is None:
            yield path
            return
        with tempfile.NamedTemporaryFile(dir=spool, prefix=f".{path.name}.") as copy:
            while chunk := source.read(_COPY):
                copy.write(chunk)
            copy.flush()
            yield Path(copy.name)


@contextlib.contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    """Arrow reports broken and unsupported files by these types; an OSError with a number is the disk's.

    A UnicodeDecodeError comes from names of columns; those of values are caught where the row is known.
    """
    try:
        yield
    except (
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        pa.ArrowTypeError,
        UnicodeDecodeError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StageError(
            Reason.MALFORMED_DATASET,
            f"{name} must be a complete Parquet file that Arrow reads, found: {str(error).splitlines()[0]}; "
            "upload it again, or write it anew with plain column types",
        ) from error
