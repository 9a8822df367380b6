from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from finetune_trainer.contract.timestamps import rfc3339, utc_now


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert rfc3339(datetime(2026, 1, 31, 10, 0, 0, 123_456, tzinfo=UTC)) == "2026-01-31T10:00:00.123Z"


def test_a_time_of_another_zone_is_converted() -> None:
    eastern = timezone(timedelta(hours=-5))
    assert rfc3339(datetime(2026, 1, 31, 22, tzinfo=eastern)) == "2026-02-01T03:00:00.000Z"


def test_the_current_time_can_be_written() -> None:
    assert rfc3339(utc_now()).endswith("Z")
