"""Examples on disk: Arrow tables written batch by batch, and a digest of what they hold."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from finetune_trainer.data.masking.example import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = pa.schema(
    [("row", pa.int32()), ("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))]
)
_BATCH = 1024


class ExampleDigest:
    """Digest over ids and labels in order: the same for any machine, batch size or file format."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, table: str) -> None:
        """Start a named part, so that an example that moves between parts changes the digest."""
        self._hash.update(b"\x00" + table.encode() + b"\x00")

    def add(self, example: Example) -> None:
        """Add one example: its length, ids and labels as little-endian int32."""
        self._hash.update(len(example.input_ids).to_bytes(4, "little"))
        self._hash.update(np.asarray(example.input_ids, dtype="<i4").tobytes())
        self._hash.update(np.asarray(example.labels, dtype="<i4").tobytes())

    def text(self) -> str:
        """`sha256:` and the digest in hexadecimal."""
        return "sha256:" + self._hash.hexdigest()


class TableWriter:
    """Writes examples to an Arrow file that appears under its name when `finish` is called."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._rows: list[int] = []
        self._ids: list[list[int]] = []
        self._labels: list[list[int]] = []
        self.digest = ExampleDigest()
        self.digest.begin(path.stem)
        self.count = 0

    def add(self, row: int, example: Example) -> None:
        """Append one example of the source's row `row`."""
        self.digest.add(example)
        self.count += 1
        self._rows.append(row)
        self._ids.append(example.input_ids)
        self._labels.append(example.labels)
        if len(self._rows) >= _BATCH:
            self._flush()

    def abandon(self) -> None:
        """Close and remove what was written."""
        self._writer.close()
        self._sink.close()
        self._temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the rest and give the file its name."""
        self._flush()
        self._writer.close()
        self._sink.close()
        self._temporary.replace(self.path)

    def _flush(self) -> None:
        if self._rows:
            columns: list[Any] = [
                pa.array(values, type=field.type)
                for values, field in zip((self._rows, self._ids, self._labels), SCHEMA, strict=True)
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            self._rows, self._ids, self._labels = [], [], []


def read_table(path: Path) -> Iterator[tuple[int, Example]]:
    """Yield (row, example) of a table in order, one batch in memory at a time."""
    # Read, not mapped: mapped pages of a large table would stay in the process's memory.
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            columns = [batch.column(name).to_pylist() for name in ("row", "input_ids", "labels")]
            for row, ids, labels in zip(*columns, strict=True):
                yield row, Example(ids, labels)
