"""Draw the dashboards as pictures for docs/dashboards.md, from the series of a real run.

`tests/e2e/test_prometheus.py` writes the series of every panel to the file that PANEL_DATA names. The pictures show what the
panels' queries return; Grafana draws them more finely.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "helm/finetune-operator/files/dashboards"
PICTURES = ROOT / "docs/images"
CELL, ROW, GAP, TOP = 46, 26, 6, 44
"""Pixels of a column and a row of Grafana's grid of 24 columns, between panels, and above the first one."""
COLORS = ("#3274d9", "#56a64b", "#ff780a", "#e02f44", "#a352cc", "#b58900", "#0aa1a1", "#8f8f8f")
POINTS = 80
"""Points of a line, at most."""
LETTER = 5.2
"""Pixels of a letter of a small text, about."""
LINES = 8
"""Series that a panel draws, at most; its legend says how many there are."""
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#24292e}.h{font-weight:600;font-size:12px}.big{font-weight:600;font-size:20px}"
    ".soft{fill:#6a737d;font-size:10px}.dash{font-weight:600;font-size:17px}"
)


@dataclass(frozen=True)
class Series:
    """One series with its name in the legend; `points` are pairs of time and value."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]


def series_of(panel: Mapping[str, Any], found: Sequence[Sequence[Mapping[str, Any]]]) -> list[Series]:
    """Return the series of a panel, with the names that its legend gives them. Values that are no numbers are left out."""
    named = []
    for target, results in zip(panel["targets"], found, strict=True):
        for result in results:
            points = [(float(time), float(value)) for time, value in result["values"]]
            finite = tuple(point for point in points if math.isfinite(point[1]))
            if finite:
                named.append(Series(_name(target.get("legendFormat", ""), result["metric"]), finite))
    return named


def _name(legend: str, labels: Mapping[str, str]) -> str:
    """Fill the labels of a series into the format of a legend."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), legend) or "value"


def shown(value: float, unit: str) -> str:
    """Return a value with its unit, as Grafana shortens it."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    suffix = {"s": " s", "h": " h", "ops": "/s", "reqps": "/s"}.get(unit, "")
    if unit == "s" and abs(value) >= 3600:
        return f"{value / 3600:.3g} h"
    return f"{value:.3g}{suffix}"


def line_chart(series: Sequence[Series], unit: str, width: float, height: float) -> Iterator[str]:
    """Yield the lines of a panel over one axis of time."""
    times = [time for each in series for time, _ in each.points]
    values = [value for each in series for _, value in each.points]
    start, span = min(times), max(max(times) - min(times), 1)
    low, high = min(0.0, *values) if min(values) >= 0 else min(values), max(values)
    scale = (high - low) or 1
    left, bottom = 52, height - 34
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - 8)
        yield f'<path d="M{left} {y:.0f}H{width:.0f}" stroke="#e5e8eb"/>'
        yield f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end" class="soft">{shown(low + share * scale, unit)}</text>'
    for number, each in enumerate(series[:LINES]):
        step = max(1, -(-len(each.points) // POINTS))
        kept = [*each.points[::step], each.points[-1]]
        path = " ".join(
            f"{left + (time - start) / span * (width - left):.0f},{bottom - (value - low) / scale * (bottom - 8):.0f}"
            for time, value in kept
        )
        color = COLORS[number % len(COLORS)]
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
    yield from legend(series, unit, width, height)
    yield f'<text x="{left}" y="{bottom + 12:.0f}" class="soft">0 s</text>'
    yield f'<text x="{width:.0f}" y="{bottom + 12:.0f}" text-anchor="end" class="soft">{span:.0f} s</text>'


def legend(series: Sequence[Series], unit: str, width: float, height: float) -> Iterator[str]:
    """Yield the names of the series with their last values, in one row, as many as fit."""
    names = [f"{each.name} {shown(each.last, unit)}" for each in series]
    count = max(1, *(count for count in range(4) if len("    ".join(names[:count])) < width / LETTER - 12))
    spans = [
        f'<tspan fill="{COLORS[number % len(COLORS)]}">■</tspan> {escape(fit(name, width))}  '
        for number, name in enumerate(names[:count])
    ]
    more = f"and {len(series) - count} more" if len(series) > count else ""
    yield f'<text x="0" y="{height - 4:.0f}" class="soft">{"".join(spans)}{more}</text>'


def fit(text: str, width: float) -> str:
    """Return as much of a small text as `width` pixels hold."""
    room = int(width / LETTER)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def bars(series: Sequence[Series], unit: str, width: float, height: float) -> Iterator[str]:
    """Yield the last value of each series as a bar."""
    largest = max((abs(each.last) for each in series), default=0) or 1
    step = min(24.0, (height - 6) / max(len(series), 1))
    for number, each in enumerate(series[: int((height - 6) // step) or 1]):
        y = number * step
        length = abs(each.last) / largest * (width - 150)
        color = COLORS[number % len(COLORS)]
        yield f'<text x="0" y="{y + 12:.0f}">{escape(each.name[:22])}</text>'
        yield f'<rect x="130" y="{y + 2:.0f}" width="{max(length, 1):.0f}" height="{step - 8:.0f}" fill="{color}" opacity=".75"/>'
        yield f'<text x="{136:.0f}" y="{y + 12:.0f}">{shown(each.last, unit)}</text>'


def strips(series: Sequence[Series], width: float, height: float) -> Iterator[str]:
    """Yield the times at which each series was 1, one strip each."""
    times = [time for each in series for time, _ in each.points]
    start, span = min(times), max(max(times) - min(times), 1)
    step = min(26.0, height / max(len(series), 1))
    for number, each in enumerate(series[:LINES]):
        y, color = number * step, COLORS[number % len(COLORS)]
        yield f'<text x="0" y="{y + 14:.0f}">{escape(each.name[:14])}</text>'
        for time, value in each.points:
            if value:
                x = 96 + (time - start) / span * (width - 102)
                long = min(max(6, (width - 102) * 5 / span), width - x)
                yield f'<rect x="{x:.0f}" y="{y + 3:.0f}" width="{long:.0f}" height="{step - 9:.0f}" fill="{color}"/>'


def body(panel: Mapping[str, Any], series: Sequence[Series], width: float, height: float) -> Iterator[str]:
    """Yield the content of a panel by its kind, or why it has none."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    if not series:
        why = panel["description"].partition(" Without data: ")[2]
        text = fit(f"No data: {why or 'none in this run'}", width)
        yield f'<text x="0" y="16" class="soft">{escape(text)}</text>'
    elif panel["type"] == "timeseries":
        yield from line_chart(series, unit, width, height)
    elif panel["type"] == "state-timeline":
        yield from strips(series, width, height)
    elif panel["type"] in {"bargauge", "piechart"}:
        yield from bars(series, unit, width, height)
    else:
        newest = max(series, key=lambda each: each.points[-1][0])
        # A panel of names shows the label and not the number.
        text = newest.name if panel.get("options", {}).get("textMode") == "name" else shown(newest.last, unit)
        yield f'<text x="0" y="28" class="big">{escape(text)}</text>'


def picture(dashboard: Mapping[str, Any], data: Mapping[tuple[str, str], Any]) -> str:
    """Return one dashboard as SVG."""
    width = 24 * CELL + GAP
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height, title = TOP + bottom * ROW + GAP, escape(dashboard["title"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#f4f5f6"/>',
        f'<text x="{GAP}" y="28" class="dash">{title}</text>',
    ]
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * CELL + GAP, TOP + place["y"] * ROW
        if panel["type"] == "row":
            parts.append(f'<text x="{x}" y="{y + 18}" class="h">{escape(panel["title"])}</text>')
            continue
        wide, high = place["w"] * CELL - GAP, place["h"] * ROW - GAP
        parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="3" fill="#fff" stroke="#dde1e4"/>'
        )
        parts.append(f'<text x="{x + 8}" y="{y + 18}" class="h">{escape(panel["title"])}</text>')
        series = series_of(panel, data[dashboard["uid"], panel["title"]])
        parts.append(f'<g transform="translate({x + 8} {y + 28})">')
        parts += body(panel, series, wide - 16, high - 34)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Write the pictures of all dashboards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="file that PANEL_DATA named")
    parser.add_argument("--folder", type=Path, default=PICTURES)
    options = parser.parse_args()
    data = {
        (each["dashboard"], each["title"]): each["series"] for each in json.loads(options.data.read_text())
    }
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        target = options.folder / f"dashboard-{path.stem.removeprefix('finetune-')}.svg"
        target.write_text(picture(dashboard, data), encoding="utf-8")
        print(f"wrote {target.name}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
