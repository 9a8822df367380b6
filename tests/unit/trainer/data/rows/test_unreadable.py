from __future__ import annotations

import pytest
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.unreadable import unreadable_kind

ROW = "row 3: column 1: Expecting value"


def rejected(reason: RowReason, detail: str = "Expecting value") -> list[tuple[int, RowRejected]]:
    return [(number, RowRejected(reason, "column 1", detail)) for number in (3, 4)]


@pytest.mark.parametrize(
    ("text", "unreadable", "what"),
    [
        ("x", rejected(RowReason.INVALID_ENCODING), f"text that is not UTF-8 ({ROW})"),
        ("x", rejected(RowReason.INVALID_JSON), f"plain text ({ROW})"),
        ("\ufeff {", rejected(RowReason.INVALID_JSON), f"text that begins like JSON and is none ({ROW})"),
        (
            "{",
            rejected(RowReason.INVALID_JSON, "NaN is not JSON"),
            "rows with NaN or Infinity, which are not JSON (row 3: column 1: NaN is not JSON)",
        ),
        ("5", rejected(RowReason.NOT_AN_OBJECT), f"JSON values that are not objects ({ROW})"),
        ('["{\\"a\\": 1}"]', rejected(RowReason.NOT_AN_OBJECT), f"JSON values that are not objects ({ROW})"),
        ('"{\\"a\\": 1}"\n', rejected(RowReason.NOT_AN_OBJECT), "rows that are JSON texts inside JSON texts (encoded twice)"),
        ("a,b", rejected(RowReason.INVALID_CSV), f"a table whose rows do not fit its header ({ROW})"),
        ("# Title\n", rejected(RowReason.INVALID_CSV), "a Markdown document"),
    ],
)  # fmt: skip
def test_the_most_frequent_fault_names_the_file(
    text: str, unreadable: list[tuple[int, RowRejected]], what: str
) -> None:
    assert unreadable_kind(text, unreadable, len(unreadable)).what == what


def test_a_file_with_some_rows_says_how_many_are_not() -> None:
    kind = unreadable_kind('{"n": 1}\nhello\nyou\n', rejected(RowReason.INVALID_JSON), 3)
    assert kind.what == f"other text between the rows (2 of 3 are not JSON; {ROW})"


def test_what_is_shown_of_a_row_is_short_and_visible() -> None:
    kind = unreadable_kind("x", rejected(RowReason.INVALID_JSON, "\u202e" + "y" * 900), 2)
    assert "\\u202e" in kind.what
    assert len(kind.what) < 250
