"""How moments and numbers are written into status."""

from __future__ import annotations

from datetime import UTC, datetime


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def parse_time(text: str) -> datetime:
    """A moment as Kubernetes writes it; raises ValueError otherwise."""
    return datetime.fromisoformat(text)


def format_number(value: float) -> str:
    """Six significant digits: status holds numbers as strings, since Kubernetes APIs avoid floats."""
    return f"{value:.6g}"
