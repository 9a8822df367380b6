"""Tables of examples on disk: the one schema, the writer, the digest and the one reader."""

from __future__ import annotations

import hashlib
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.masking.example import IGNORED, Example

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
        self.tokens = 0
        """Tokens of all examples."""

    def add(self, example: Example) -> None:
        """Append one example, with the number of its row."""
        self.digest.add(example)
        self.count += 1
        self.tokens += len(example.input_ids)
        self._rows.append(example.row)
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


class ExampleTable:
    """A finished table, mapped into memory: nothing is copied until it is read.

    Pages that were read stay in the process's memory until `release`.
    """

    def __init__(self, path: Path) -> None:
        """Map the table at `path`. Raises OSError or ValueError if it is missing or is not an Arrow file."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        # Batches point into the map, so that holding all of them costs no memory for their values.
        self.batches = [self._reader.get_batch(number) for number in range(self._reader.num_record_batches)]
        self.file = np.frombuffer(self._map, dtype=np.uint8)

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    @property
    def arrow(self) -> pa.Table:
        """The table as Arrow sees it, with the columns of SCHEMA."""
        return pa.Table.from_batches(self.batches, SCHEMA)

    def longest(self) -> int:
        """Return the number of tokens of the longest example, 0 if there is none."""
        return int(self.lengths().max(initial=0))

    def lengths(self) -> np.ndarray[Any, Any]:
        """Return the number of tokens of each example, int32."""
        lengths = pc.list_value_length(self.arrow.column("input_ids"))
        return np.asarray(lengths.to_numpy(), dtype=np.int32)

    def learned(self) -> np.ndarray[Any, Any]:
        """Return the number of learned tokens of each example, int64."""
        counts = []
        for batch in self.batches:
            labels = batch.column("labels")
            before = np.concatenate([[0], np.cumsum(labels.values.to_numpy() != IGNORED)])
            offsets = labels.offsets.to_numpy()
            counts.append(before[offsets[1:]] - before[offsets[:-1]])
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)

    def first(self, limit: int) -> list[Example]:
        """Return the first `limit` examples."""
        return [example for batch in self.arrow.slice(0, limit).to_batches() for example in _examples(batch)]

    def release(self) -> None:
        """Give the pages read so far back to the system; reading again takes them from its cache or the disk."""
        self._map.madvise(mmap.MADV_DONTNEED)


def stream_examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a table in order, with one batch in memory at a time."""
    # Reading instead of mapping turns a failing disk into an OSError; a mapped page would end the process.
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield from _examples(reader.get_batch(number))


def _examples(batch: Any) -> Iterator[Example]:
    columns = [batch.column(name).to_pylist() for name in ("input_ids", "labels", "row")]
    for ids, labels, row in zip(*columns, strict=True):
        yield Example(ids, labels, row)
