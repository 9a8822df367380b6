"""Text for people: durations, columns, and the way that tables and documents are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 80
NOTHING = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
PHASE_STYLES = {
    "Succeeded": "green",
    "Failed": "red",
    "Stalled": "yellow",
    "Suspended": "yellow",
}


def duration(seconds: float) -> str:
    """Return a duration with at most two units, like kubectl: `45s`, `3m05s`, `2h10m`, `4d3h`."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR}h"


def moment(text: Any) -> datetime | None:
    """Return the time of an RFC 3339 text; None if there is none."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def printable(text: Any) -> str:
    """Return text on one line, without control characters that a hostile object could send to the terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text))


def number(text: Any) -> float | None:
    """Return the finite number that a text of the status gives, else None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None


def columns(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return lines with aligned columns, three blanks apart. Absent values are a dash."""
    table = [[NOTHING if value is None else printable(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return [
        "   ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def print_document(document: Any, form: str, output: TextIO | None = None) -> None:
    """Print a document as `json` or `yaml`."""
    target = output or sys.stdout
    if form == "yaml":
        import yaml  # noqa: PLC0415 -- most commands need no YAML

        yaml.safe_dump(document, target, sort_keys=False, allow_unicode=True)
    else:
        print(json.dumps(document, indent=2), file=target)


def console_for(output: TextIO, environment: Mapping[str, str] | None = None) -> Console:
    """Return a console: colors and live updates on a terminal, plain text of 80 columns elsewhere and with NO_COLOR."""
    from rich.console import Console  # noqa: PLC0415 -- only tables and live views need it

    values = os.environ if environment is None else environment
    terminal = output.isatty() and values.get("TERM") != "dumb"
    return Console(
        file=output,
        force_terminal=terminal,
        no_color=not terminal or bool(values.get("NO_COLOR")),
        width=None if terminal else PLAIN_WIDTH,
        highlight=False,
        emoji=False,
        markup=False,
        soft_wrap=False,
    )
