"""Reads the rows of a Parquet file batch by batch."""

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
    """Yield each row's number, its values by column, and the file's bytes in proportion to the rows read.

    Null members of structs are left out, because Parquet gives every struct of a column the members of all of them.
    Dates become text in ISO 8601, and NaN becomes null. A row whose text column holds bytes that are not UTF-8 is
    rejected. Binary values, such as images, stay bytes. Raises StageError(MalformedDataset).
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
    """Return the value in JSON types. Bytes become text if they are UTF-8, because old writers store text as bytes."""
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
    """Raise ArrowInvalid for equal names in the table or one of its structs: rows would keep only the last."""
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
    """Yield the file itself, or a temporary unpacked copy if it is compressed."""
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
    """Turn Arrow's errors for broken and unsupported files into StageError(MalformedDataset).

    An OSError with a number comes from the disk and is raised again. A UnicodeDecodeError here comes from column names;
    errors in values are caught earlier, where the row is known.
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
            "upload it again, or rewrite it with plain column types",
        ) from error
