"""Formats of times and numbers in the status."""

from __future__ import annotations

from datetime import UTC, datetime


def format_time(moment: datetime) -> str:
    """Format a time like Kubernetes: RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def parse_time(text: str) -> datetime:
    """Parse a time that Kubernetes wrote. Raises ValueError for any other text."""
    return datetime.fromisoformat(text)


def format_number(value: float) -> str:
    """Format a number with six significant digits. The status holds strings, because Kubernetes APIs avoid floats."""
    return f"{value:.6g}"
