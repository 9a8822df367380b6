"""The pause that a server asks for: the header fields `Retry-After` and `RateLimit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DAY_SECONDS = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,40}")
# IETF draft-ietf-httpapi-ratelimit-headers, which the Hugging Face Hub sends: `"api";r=0;t=55`.
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})\b")


def requested_pause(fields: Mapping[str, str], now: datetime | None = None) -> float:
    """Return the pause in seconds that a response asks for, 0 if it asks for none.

    `fields` are header fields by lower-case name. A date is compared with the response's own `Date`, because clocks of
    two machines differ, or else with `now` (by default the current time). More than a day counts as a day.
    """
    return min(_requested(fields, now), _DAY_SECONDS)


def _requested(fields: Mapping[str, str], now: datetime | None) -> float:
    requested = fields.get("retry-after", "").strip()
    if _SECONDS.fullmatch(requested):
        return float(requested)
    moment = parse_http_date(requested)
    if moment is not None:
        reference = parse_http_date(fields.get("date", "")) or now or datetime.now(UTC)
        return max(0.0, (moment - reference).total_seconds())
    limited = _RATE_LIMIT.search(fields.get("ratelimit", ""))
    return float(limited[1]) if limited else 0.0


def parse_http_date(text: str) -> datetime | None:
    """Return a date of HTTP or e-mail, in UTC if it names no zone; None if `text` is none."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
