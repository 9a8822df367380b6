"""The numbers and the table of `make benchmark-batching`."""

from __future__ import annotations

from benchmarks.batching import shares, table


def test_only_padding_lowers_the_share_and_it_depends_on_the_kind() -> None:
    """A step of two rows, whose lengths differ by more than a pass costs."""
    found = shares([1000, 2000], 2, 2)
    assert found["Packed"] == {"realTokens": 1.0, "passes": 1.0}
    assert found["AsDrawn"] == {"realTokens": 0.75, "passes": 1.0}
    assert found["Grouped"] == {"realTokens": 1.0, "passes": 2.0}


def test_the_last_step_may_have_fewer_rows() -> None:
    assert shares([10] * 5, 2, 1)["AsDrawn"] == {"realTokens": 1.0, "passes": round(5 / 3, 2)}


def test_the_table_has_one_row_for_each_line() -> None:
    line = {
        "dataset": "chats",
        "tokens": {"shortest": 3, "median": 7.5, "longest": 11},
        "rowsPerStep": 16,
        "microBatch": 4,
        **shares([1000, 2000], 2, 2),
    }
    assert table([line]).splitlines()[2:] == [
        "| chats | 3 to 11, median 7.5 | 16 | 4 | 75.0 % | 100.0 % | 100.0 % | 1, 2, 1 |"
    ]
