from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.data.dataset.tables import TableWriter
from finetune_trainer.data.masking.example import Example
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.dataset import open_table, training_dataset


def write(path: Path, examples: list[Example]) -> Path:
    writer = TableWriter(path)
    for example in examples:
        writer.add(example)
    writer.finish()
    return path


def test_trl_gets_ids_and_labels_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "training.arrow", [Example([1, 2], [-100, 2], row=3)])
    dataset = training_dataset(open_table(path))
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset[0] == {"input_ids": [1, 2], "labels": [-100, 2]}


def test_a_table_that_is_missing_damaged_or_empty_cannot_be_trained_on(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.arrow"
    damaged.write_bytes(b"no table")
    for path in (tmp_path / "missing.arrow", damaged, write(tmp_path / "empty.arrow", [])):
        with pytest.raises(StageError, match=path.name) as caught:
            open_table(path)
        assert caught.value.reason is Reason.INVALID_DATASET
