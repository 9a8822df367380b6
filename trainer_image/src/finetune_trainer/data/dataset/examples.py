"""The proven examples that PREPARE left, and which of them are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and labels that equal them where something is learned, else -100."""

    row: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> tuple[int, ...]:
        """Positions in `input_ids` that are learned. The first token has no predecessor and is never one."""
        return tuple(index for index, label in enumerate(self.labels) if index and label != IGNORED)


def read_table(path: Path) -> pa.Table:
    """Map a table of examples (Arrow IPC file, see WorkspaceLayout); nothing is copied.

    Raises StageError(InvalidDataset) when it is missing, unreadable or empty.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise StageError(
            Reason.INVALID_DATASET,
            f"the workspace must hold PREPARE's {path.name}, found: {error}; run PREPARE again",
        ) from error
    if table.num_rows == 0:
        raise StageError(
            Reason.INVALID_DATASET, f"{path.name} must hold at least one example, found none; add rows"
        )
    return table


def longest_row(table: pa.Table) -> int:
    """Tokens of the table's longest row."""
    return int(pc.max(pc.list_value_length(table.column("input_ids"))).as_py())


def training_dataset(table: pa.Table) -> Any:
    """Return what TRL trains on: the columns `input_ids` and `labels`, untouched."""
    return Dataset(InMemoryTable(table.select(["input_ids", "labels"])))


def first_examples(table: pa.Table, limit: int) -> list[Example]:
    """Return the first `limit` examples; PREPARE chose the held-out rows by seed, so first is as good as any."""
    return [
        Example(row["row"], tuple(row["input_ids"]), tuple(row["labels"]))
        for row in table.slice(0, limit).to_pylist()
    ]
