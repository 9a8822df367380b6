"""A finished Arrow table of examples, read in place: whole columns with a few bytes of memory an example."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune_trainer.data.dataset.tables import ExampleTable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROWS_BETWEEN_RELEASES = 256
"""The number of rows that may be read in random order before `release`: the system reads 128 kB around each."""
_READ_AHEAD_TOKENS = 8_000_000


class TableView(NamedTuple):
    """The position of each example, in the form that compiled loops take.

    `words` is the whole file as int32. Example `e` has its token ids at `words[ids_at[e]:][:lengths[e]]` and its
    labels at `words[labels_at[e]:][:lengths[e]]`. Row `r` has the examples `first[r]` up to `first[r + 1]`.
    """

    words: NDArray[np.int32]
    ids_at: NDArray[np.int64]
    labels_at: NDArray[np.int64]
    lengths: NDArray[np.int32]
    first: NDArray[np.int64]


class TokenTable:
    """The examples of one table; consecutive examples with the same row number are one row.

    The file is mapped into memory, and `release` returns the pages read so far to the system. So a pass over a table of
    any size needs only the memory of one of its `parts`, and 28 bytes an example.
    """

    def __init__(self, path: Path) -> None:
        self._table = ExampleTable(path)
        whole = self._table.file
        batches = [self._index(batch, whole) for batch in self._table.batches]
        empty = (np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
        columns = [np.concatenate(parts) for parts in zip(*batches, strict=True)] or list(empty)
        numbers, ids_at, labels_at, lengths = columns
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        first = np.append(starts, numbers.size).astype(np.int64)
        self.row_numbers: NDArray[np.int32] = numbers[starts]
        words = whole[: whole.size // 4 * 4].view(np.int32)
        self.view = TableView(words, ids_at, labels_at, lengths, first)
        self.release()

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.view.lengths.size

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.row_numbers.size

    def ids(self, example: int) -> NDArray[np.int32]:
        """Token ids of one example."""
        start = self.view.ids_at[example]
        return self.view.words[start : start + self.view.lengths[example]]

    def labels(self, example: int) -> NDArray[np.int32]:
        """Labels of one example."""
        start = self.view.labels_at[example]
        return self.view.words[start : start + self.view.lengths[example]]

    def parts(self) -> list[tuple[int, int]]:
        """Return ranges of rows of about 8 million tokens each (64 MB of ids and labels), in order."""
        if not self.rows:
            return []
        tokens = np.concatenate(([0], np.cumsum(self.view.lengths, dtype=np.int64)))[self.view.first]
        cuts = np.searchsorted(tokens, np.arange(0, tokens[-1], _READ_AHEAD_TOKENS), side="left")
        edges = [int(edge) for edge in np.unique(np.append(cuts, self.rows))]
        return list(pairwise(edges))

    def release(self) -> None:
        """Return the pages read so far to the system; a later read takes them from its cache or the disk."""
        self._table.release()

    @staticmethod
    def _index(batch: Any, whole: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        ids, labels = batch.column("input_ids"), batch.column("labels")
        offsets = ids.offsets.to_numpy()
        if not np.array_equal(np.diff(offsets), np.diff(labels.offsets.to_numpy())):
            raise ValueError("the ids and labels of an example must have equal lengths")
        places = [
            _position(column.values, whole) + column.offsets.to_numpy().astype(np.int64)[:-1]
            for column in (ids, labels)
        ]
        numbers = batch.column("row").to_numpy(zero_copy_only=False).astype(np.int32)
        return numbers, places[0], places[1], np.diff(offsets).astype(np.int32)


def _position(values: Any, whole: NDArray[np.uint8]) -> int:
    """Return the index of the array's first value in the file, counted in int32."""
    if not len(values):
        return 0
    start = int(values.buffers()[1].address) - int(whole.ctypes.data)
    if not 0 <= start < whole.size or start % 4:
        raise ValueError("a table must be uncompressed and have aligned columns")
    return start // 4 + int(values.offset)
