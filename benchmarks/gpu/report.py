"""Print the lines of a run as tables in Markdown: `python -m benchmarks.gpu.report LINES.jsonl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import Line, read_lines
from benchmarks.gpu.plan import measurements
from benchmarks.gpu.shapes import REAL

_GIB = 1 << 30
_MOST = 4
"""Members of a value with members that a cell shows."""


def tables(lines: Sequence[Line]) -> str:
    """Return a table for each measurement that has lines; each names the packages that are too old."""
    found = []
    for measurement in measurements(REAL):
        chosen = [line for line in lines if line.measurement == measurement.name]
        if chosen:
            found.append(_table(f"{measurement.number}. {measurement.title}", chosen))
    return "\n".join(found)


def caption(lines: Sequence[Line]) -> str:
    """Return what a reader must know before the numbers: their age, and whether they mean anything."""
    below = sorted({text for line in lines for text in line.below})
    parts = [
        f"Older than this project supports: {', '.join(below)}." if below else "All packages are supported."
    ]
    if any(line.dry for line in lines):
        parts.append("A dry run on a CPU: its numbers mean nothing.")
    return " ".join(parts)


def _table(title: str, lines: Sequence[Line]) -> str:
    rows = [f"## {title}", "", caption(lines), "", "| case | seconds | outcome |", "|---|---|---|"]
    for line in lines:
        outcome = _values(line.values) if line.status == "measured" else f"{line.status}: {line.reason}"
        rows.append(f"| {line.case} | {line.seconds:.1f} | {outcome.replace('|', '/')} |")
    return "\n".join([*rows, ""])


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(name, value)}" for name, value in values.items() if value is not None)


def _text(name: str, value: Any) -> str:
    """Return a value for people: bytes in GiB, shares in percent."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("Bytes"):
        return f"{value / _GIB:.2f} GiB"
    if isinstance(value, float):
        return f"{value:.1%}" if name.lower().endswith("share") else f"{value:,.4g}"
    if isinstance(value, Mapping):
        shown = [f"{key} {_text(name, part)}" for key, part in list(value.items())[:_MOST]]
        return f"({', '.join(shown)}{', …' if len(value) > _MOST else ''})"
    if isinstance(value, list | tuple):
        return "; ".join(_text(name, part) for part in value) or "none"
    return str(value)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report")
    parser.add_argument("lines", type=Path, help="lines.jsonl of a run")
    options = parser.parse_args()
    print(tables(read_lines(options.lines.read_text(encoding="utf-8").splitlines())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
