"""The pause that a server asks for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from finetune_trainer.sources.retry_after import parse_http_date, requested_pause

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("Thu, 01 Jan 2026 12:01:30 GMT", 90.0),
        ("Thursday, 01-Jan-26 12:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("-5", 0.0),
        ("1e9", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("\u00b2", 0.0),
        ("Thu, 99 Jan 2026 12:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates_are_read_and_anything_else_is_no_pause(value: str, seconds: float) -> None:
    assert requested_pause({"retry-after": value}, NOW) == seconds


def test_a_date_is_compared_with_the_servers_own_clock() -> None:
    fields = {"retry-after": "Thu, 01 Jan 2026 12:01:30 GMT", "date": "Thu, 01 Jan 2026 12:01:00 GMT"}
    assert requested_pause(fields, NOW) == 30.0


@pytest.mark.parametrize("value", ["9" * 40, "Thu, 01 Jan 2099 12:00:00 GMT"])
def test_more_than_a_day_counts_as_a_day(value: str) -> None:
    assert requested_pause({"retry-after": value}, NOW) == 86_400.0


def test_the_hubs_rate_limit_counts_only_when_nothing_remains() -> None:
    assert requested_pause({"ratelimit": '"api";r=0;t=55'}, NOW) == 55.0
    assert requested_pause({"ratelimit": '"api";r=12;t=55'}, NOW) == 0.0


def test_a_date_without_a_zone_is_in_utc() -> None:
    assert parse_http_date("Thu, 01 Jan 2026 12:00:00") == NOW
