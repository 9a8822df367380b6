from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from finetune_operator.api.formats import format_number, format_time, parse_time


def test_times_are_written_in_utc_with_whole_seconds() -> None:
    local = datetime(2026, 11, 24, 1, 30, 15, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(local) == "2026-11-23T23:30:15Z"


def test_a_written_time_is_read_again() -> None:
    moment = datetime(2026, 11, 24, 9, 0, 1, tzinfo=UTC)
    assert parse_time(format_time(moment)) == moment
    assert parse_time("2026-11-24T09:00:01.000000Z") == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_a_text_that_is_not_a_time_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        parse_time(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1 + 0.2, "0.3"), (2, "2"), (1234567.0, "1.23457e+06"), (0.000012345678, "1.23457e-05")],
)
def test_numbers_have_six_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text
