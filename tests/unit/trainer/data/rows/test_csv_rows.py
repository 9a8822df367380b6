from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.data.rows.reader import MAXIMUM_ROW_BYTES
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason

from tests.support.row_files import fault, read


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'prompt,completion\na,"b\nc,d\n', "row 1 (line 2)"),
        (b"prompt,prompt\na,b\n", "found 'prompt' twice"),
    ],
)
def test_a_broken_table_is_malformed_and_the_fault_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    error = fault(tmp_path, data)
    assert error.reason is Reason.MALFORMED_DATASET
    assert said in error.message


def test_an_unreadable_row_of_a_table_rejects_only_that_row(tmp_path: Path) -> None:
    table = (
        b'prompt,completion\r\n"a\nb",c\r\nd\r\n\r\ne,"f"g\r\nh,\xff\r\ni,'
        + b"x" * MAXIMUM_ROW_BYTES
        + b"\r\n"
        b'"' + b"y" * MAXIMUM_ROW_BYTES + b'",j\nk,l,m\nn,'
    )
    table = table.replace(b"\r\n", b"\r\n" + b"good,row\r\n" * 8, 1)
    found = list(read(tmp_path, table).values())
    assert found[:8] == [{"prompt": "good", "completion": "row"}] * 8
    assert found[8:] == [
        {"prompt": "a\nb", "completion": "c"},
        (RowReason.INVALID_CSV, "line 12"),
        (RowReason.INVALID_CSV, "line 14"),
        (RowReason.INVALID_ENCODING, "line 15"),
        (RowReason.ROW_TOO_LARGE, "line 16"),
        (RowReason.ROW_TOO_LARGE, "line 17"),
        (RowReason.INVALID_CSV, "line 18"),
        {"prompt": "n", "completion": ""},
    ]
