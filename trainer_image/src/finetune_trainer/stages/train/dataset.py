"""The tables that PREPARE left, and the training table as a dataset for TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset
from datasets.table import InMemoryTable

from finetune_trainer.data.dataset.tables import ExampleTable
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path


def open_table(path: Path) -> ExampleTable:
    """Map a table that PREPARE left in the workspace.

    Raises StageError(InvalidDataset) if it is missing, unreadable or empty.
    """
    try:
        table = ExampleTable(path)
    except (OSError, ValueError) as error:
        raise StageError(
            Reason.INVALID_DATASET,
            f"the workspace must hold PREPARE's {path.name}, found: {error}; run PREPARE again",
        ) from error
    if not len(table):
        raise StageError(
            Reason.INVALID_DATASET, f"{path.name} must hold at least one example, found none; add rows"
        )
    return table


def training_dataset(table: ExampleTable) -> Any:
    """Return the columns `input_ids` and `labels` of a table for TRL, unchanged and not copied."""
    return Dataset(InMemoryTable(table.arrow.select(["input_ids", "labels"])))
