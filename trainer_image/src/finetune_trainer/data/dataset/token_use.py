"""The token ids in finished tables: the largest one, and those at which answers end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.masking.example import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenUse:
    """The largest token id in the tables and the first row that has it; `ends` has the last id of every answer.

    The most frequent end comes first.
    """

    largest: int
    row: int
    ends: tuple[int, ...]


def token_use(tables: Iterable[Path]) -> TokenUse:
    """Read the tables at these paths batch by batch. Raises OSError if one is missing."""
    largest, row = -1, 0
    counts: dict[int, int] = {}
    for batch in _batches(tables):
        ids = _values(batch, "input_ids")
        if ids.size == 0:
            continue
        position = int(ids.argmax())
        if ids[position] > largest:
            largest, row = int(ids[position]), int(batch.column("row")[_row_at(batch, position)].as_py())
        for end, count in zip(*np.unique(_last_labels(batch), return_counts=True), strict=True):
            counts[int(end)] = counts.get(int(end), 0) + int(count)
    return TokenUse(largest, row, tuple(sorted(counts, key=lambda end: (-counts[end], end))))


def _batches(tables: Iterable[Path]) -> Iterator[Any]:
    for path in tables:
        with pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


def _values(batch: Any, column: str) -> NDArray[np.int32]:
    values: NDArray[np.int32] = batch.column(column).flatten().to_numpy(zero_copy_only=False)
    return values


def _ends(batch: Any) -> NDArray[np.int64]:
    """Return the position behind each row in the flattened columns."""
    return np.cumsum(pc.list_value_length(batch.column("input_ids")).to_numpy(zero_copy_only=False))


def _row_at(batch: Any, position: int) -> int:
    return int(np.searchsorted(_ends(batch), position, side="right"))


def _last_labels(batch: Any) -> NDArray[np.int32]:
    """Return the last label of each answer: the next position is ignored, or belongs to another row."""
    labels = _values(batch, "labels")
    learned = labels != IGNORED
    followed = np.append(learned[1:], [False])
    ends = _ends(batch)
    followed[ends[ends > 0] - 1] = False
    last: NDArray[np.int32] = labels[learned & ~followed]
    return last
