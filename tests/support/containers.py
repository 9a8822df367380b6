"""Writes the same rows in every container and compression."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def array(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def indented_array(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=2).encode()


def member(rows: Rows) -> bytes:
    document = {"version": 1, "about": {"rows": "none [here]"}, "data": rows, "end": "]"}
    return json.dumps(document, indent=1).encode()


def objects(rows: Rows) -> bytes:
    return b"\n".join(json.dumps(row, indent=1).encode() for row in rows)


def separated(delimiter: str) -> Callable[[Rows], bytes]:
    """Return a function that writes a table of the rows' columns; other values become JSON text."""

    def table(rows: Rows) -> bytes:
        columns = list(rows[0])
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)
        return text.getvalue().encode()

    return table


def parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=7)
    return sink.getvalue()


def gzip_members(data: bytes) -> bytes:
    middle = len(data) // 2
    return gzip.compress(data[:middle]) + gzip.compress(b"") + gzip.compress(data[middle:])


def zstd_frames(data: bytes) -> bytes:
    """Return two frames with a skippable frame between them, like parallel compressors write."""
    middle = len(data) // 2
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    return zstd(data[:middle]) + skippable + zstd(data[middle:])


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


JSON_CONTAINERS: dict[str, Callable[[Rows], bytes]] = {
    "lines": lines,
    "array": array,
    "indented array": indented_array,
    "member": member,
    "objects": objects,
}
CONTAINERS: dict[str, Callable[[Rows], bytes]] = {
    **JSON_CONTAINERS,
    "csv": separated(","),
    "tabs": separated("\t"),
    "semicolons": separated(";"),
    "parquet": parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip members": gzip_members,
    "zstd": zstd,
    "zstd frames": zstd_frames,
}
