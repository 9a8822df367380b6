"""Files that are read as one source of rows, and the format that their first rows show."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.conversations.formats import detect_format, parse_row
from finetune_trainer.data.rows.reader import Row, read_rows, require_rows_file, until_fault, why_empty
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from finetune_trainer.data.conversations.conversation import Conversation

_FIRST_ROWS = 200


@dataclass(frozen=True)
class RowSource:
    """Files that are read one after another as one source of rows, and their format.

    All compressed files together may unpack to `maximum_bytes`. `why` says what decided the format. `spool` is a folder
    for temporary files. None stands for the defaults of `read_rows`.
    """

    paths: tuple[Path, ...]
    format: str
    why: str
    maximum_bytes: int | None = None
    spool: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def rows(self) -> Iterator[Row]:
        """Read the rows in order. Raises StageError with MalformedDataset or DatasetTooLarge."""
        return read_rows(self.paths, self.maximum_bytes, self.spool)

    def first_conversations(self, reasoning: Any) -> Iterator[Conversation]:
        """Yield the conversations of the first rows; rows that cannot be read are left out."""
        for row in islice(until_fault(self.rows(), []), _FIRST_ROWS):
            if isinstance(row.value, RowRejected):
                continue
            try:
                yield parse_row(row.value, format_name=self.format, reasoning=reasoning)
            except RowRejected:
                continue  # proving the row reports it


def open_source(
    paths: Sequence[Path], wanted: str, maximum_bytes: int | None = None, spool: Path | None = None
) -> RowSource:
    """Decide the format of the rows: the wanted one, or for `Auto` the one that the first rows show.

    Raises StageError(MalformedDataset) if the files are something else than rows, and StageError(InvalidDataset) if they
    hold no rows, or rows of no known format or of another format than the wanted one.
    """
    for path in paths:
        # The first rows show nothing of the files behind them, and proving them may take an hour.
        require_rows_file(path)
    faults: list[StageError] = []
    rows = until_fault(read_rows(paths, maximum_bytes, spool), faults)
    first = next(rows, None)
    if first is None:
        raise faults[0] if faults else _without_rows(paths)
    # A file that is broken further on still shows its format; proving the rows reports the fault.
    detection = detect_format(chain([first], rows), wanted)
    return RowSource(tuple(paths), detection.format, detection.why, maximum_bytes, spool)


def _without_rows(paths: Sequence[Path]) -> StageError:
    found = dict.fromkeys(why_empty(path) for path in paths)
    return StageError(
        Reason.INVALID_DATASET,
        f"the dataset must have rows, found {' and '.join(found) or 'no file'}; check what was uploaded",
    )
