"""Time as the contract writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Time zone aware current time in UTC."""
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, for example `2026-01-31T10:00:00.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
