"""Dataset files for the tests of rows: random conversations, and the outcome of reading a file."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from finetune_trainer.data.rows.reader import read_rows
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import StageError

from tests.support.row_mutations import text

Outcome = dict[str, Any] | tuple[RowReason, str]


def read(folder: Path, data: bytes, **options: Any) -> dict[int, Outcome]:
    """Return each row number with its object, or with the reason and place of its rejection."""
    path = folder / "dataset.bin"
    path.write_bytes(data)
    return {
        row.number: (row.value.reason, row.value.field) if isinstance(row.value, RowRejected) else row.value
        for row in read_rows([path], **options)
    }


def fault(folder: Path, data: bytes, **options: Any) -> StageError:
    """Return the error that ends the reading of this data."""
    with pytest.raises(StageError) as caught:
        read(folder, data, **options)
    return caught.value


def conversations(count: int) -> list[dict[str, Any]]:
    """Return rows with `messages` whose texts need quoting in every container."""
    random = Random(count)  # noqa: S311 -- names a file, no secret
    return [
        {
            "messages": [
                {"role": "user", "content": f'{number}: "quoted", {text(random)}\r\n\u2028'},
                {"role": "assistant", "content": text(random)},
            ]
        }
        for number in range(count)
    ]
