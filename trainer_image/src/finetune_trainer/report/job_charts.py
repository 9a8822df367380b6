"""Layout of the job page's plots in SVG user units: curves, an interval, bars of memory, and the timeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 640
HEIGHT = 180
_TICKS = 4
_LEAST_BAR = 3.0
_MAXIMUM_BARS = 20
_LEAST_SPAN = 1e-9
"""Of the numbers themselves: below it their labels would not differ."""


@dataclass(frozen=True)
class Tick:
    """A label at a position of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A line as the `points` of a polyline, dots as (x, y, title), and the labels of both axes."""

    line: str
    dots: tuple[tuple[float, float, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class IntervalPlot:
    """A difference with its interval on an axis that contains zero."""

    low: float
    high: float
    value: float
    zero: float
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with its text."""

    name: str
    x: float
    width: float
    text: str


def curve(
    points: Sequence[Mapping[str, Any]], name: str, dots: Sequence[Mapping[str, Any]] = ()
) -> Curve | None:
    """Lay out the member `name` by `step`; `dots` are losses on held-out rows. None if fewer than two points are known."""
    line = [(int(point["step"]), float(point[name])) for point in points if point.get(name) is not None]
    marks = [(int(dot["step"]), float(dot["loss"])) for dot in dots]
    if len(line) < 2:
        return None
    steps = [step for step, _ in (*line, *marks)]
    ticks = _ticks(min(value for _, value in (*line, *marks)), max(value for _, value in (*line, *marks)))
    low, high = ticks[0], ticks[-1]
    first, last = min(steps), max(steps)

    def place(step: int, value: float) -> tuple[float, float]:
        x = (step - first) / max(last - first, 1) * WIDTH
        return round(x, 1), round(HEIGHT - (value - low) / (high - low) * HEIGHT, 1)

    x_values = sorted({first + round((last - first) * part / _TICKS) for part in range(_TICKS + 1)})
    return Curve(
        " ".join(f"{x},{y}" for x, y in (place(step, value) for step, value in line)),
        tuple((*place(step, value), f"step {step}: {value:.4g}") for step, value in marks),
        tuple(Tick(place(step, low)[0], f"{step:,}") for step in x_values),
        tuple(Tick(place(first, value)[1], f"{value:.4g}") for value in ticks),
    )


def interval_plot(value: float, interval: Sequence[float]) -> IntervalPlot | None:
    """Lay out a difference and its interval; None if a number is not finite."""
    low, high = interval
    if not all(math.isfinite(number) for number in (value, low, high)):
        return None
    ticks = _ticks(min(low, value, high, 0.0), max(low, value, high, 0.0))

    def place(number: float) -> float:
        return round((number - ticks[0]) / (ticks[-1] - ticks[0]) * WIDTH, 1)

    return IntervalPlot(
        place(low),
        place(high),
        place(value),
        place(0.0),
        tuple(Tick(place(tick), f"{tick:+.4g}" if tick else "0") for tick in ticks),
    )


def memory_bars(memory: Mapping[str, Any], estimate: Mapping[str, Any]) -> tuple[Bar, ...]:
    """Lay out the known peaks of the GPU's memory, each below its estimate, against all that the device has."""
    parts = (
        (memory, "loadBytes", "until the model was loaded"),
        (estimate, "peakBytes", "tensors, estimated"),
        (memory, "allocatedBytes", "tensors"),
        (memory, "reservedBytes", "torch's allocator"),
        (estimate, "deviceBytes", "in use on the device, estimated"),
        (memory, "deviceBytes", "in use on the device"),
        (memory, "usableBytes", "all that the device has"),
    )
    known = {text: int(source[name]) for source, name, text in parts if source.get(name) is not None}
    largest = max(known.values(), default=0)
    if not largest:
        return ()
    return tuple(
        Bar(name, 0.0, round(size / largest * WIDTH, 1), f"{size / 2**30:.2f} GiB")
        for name, size in known.items()
    )


def timeline_bars(entries: Sequence[Mapping[str, Any]]) -> tuple[Bar, ...]:
    """Lay out the newest attempts between the first start and the last known time.

    An attempt without end was lost, or runs still: it reaches the start of the next one, or the last known time.
    """
    entries = entries[-_MAXIMUM_BARS:]
    times = [(_moment(entry.get("startTime")), _moment(entry.get("completionTime"))) for entry in entries]
    known = [moment for pair in times for moment in pair if moment is not None]
    if not known or (span := (max(known) - min(known)).total_seconds()) <= 0:
        return ()
    bars = []
    following = [*(start for start, _ in times[1:]), None]
    for entry, (start, end), after in zip(entries, times, following, strict=True):
        if start is None:
            continue
        x = (start - min(known)).total_seconds() / span * WIDTH
        width = ((end or after or max(known)) - start).total_seconds() / span * WIDTH
        x = min(x, WIDTH - _LEAST_BAR)
        name = f"{entry['stage']} {entry['attempt']}"
        bars.append(Bar(name, round(x, 1), round(max(width, _LEAST_BAR), 1), duration(entry)))
    return tuple(bars)


def duration(entry: Mapping[str, Any]) -> str:
    """Return the time between start and end as text; empty if one of them is not known."""
    start, end = _moment(entry.get("startTime")), _moment(entry.get("completionTime"))
    if start is None or end is None:
        return ""
    seconds = max((end - start).total_seconds(), 0.0)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo is not None else None


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers from at most `low` to at least `high`, two or more."""
    span, largest = high - low, max(abs(low), abs(high))
    if span <= _LEAST_SPAN * max(largest, _LEAST_SPAN):
        span = largest if largest > _LEAST_SPAN else 1.0
    raw = span / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return tuple(number * step for number in range(first, last + 1))
