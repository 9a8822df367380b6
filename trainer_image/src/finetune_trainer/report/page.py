"""The dataset report as one self-contained HTML page: no network, no script, plots as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from finetune_trainer.data.rows.excerpts import percent, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jinja2 import Template

PLOT_WIDTH = 640
PLOT_HEIGHT = 150
_TICKS = 6
_COUNTS = (
    "rows",
    "kept",
    "duplicates",
    "heldOutCopies",
    "withReasoning",
    "emptyAnswers",
    "escaped",
    "shortened",
)


@dataclass(frozen=True)
class Bar:
    """One bin of a plot: left edge, width and height in SVG user units, and its values as text."""

    x: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Tick:
    """A label below the plot."""

    x: float
    label: str


@dataclass(frozen=True)
class Plot:
    """The layout of a histogram; the bars start at y = PLOT_HEIGHT."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    largest: int


def plot(histogram: dict[str, Any]) -> Plot:
    """Lay out a histogram of the report's document."""
    edges, counts = histogram["edges"], histogram["counts"]
    width = PLOT_WIDTH / len(counts)
    largest = max(counts)
    # The last bin may be very wide. It is drawn like the others, and only its beginning has a label.
    open_end = len(counts) > 1 and edges[-1] - edges[-2] > edges[1] - edges[0]
    bars = []
    for number, count in enumerate(counts):
        first, last = edges[number], edges[number + 1] - 1
        tokens = f"{first}" if first == last else f"{first} to {last}"
        height = count / largest * PLOT_HEIGHT
        bars.append(
            Bar(
                round(number * width, 2), round(width - 1, 2), round(height, 2), f"{tokens} tokens: {count:,}"
            )
        )
    step = -(-len(edges) // _TICKS)
    shown = edges[:-1] if open_end else edges
    ticks = tuple(Tick(round(place * width, 2), f"{shown[place]:,}") for place in range(0, len(shown), step))
    return Plot(tuple(bars), ticks, largest)


def render_html(document: dict[str, Any]) -> str:
    """Render the document of `DatasetDocument.to_json`; equal documents give equal bytes."""
    sources = [
        source for source in (document["dataset"], document["validationDataset"]) if source is not None
    ]
    counts = {name: sum(source[name] for source in sources) for name in _COUNTS}
    counts["rejected"] = sum(sum(source["rejected"].values()) for source in sources)
    return _template().render(report=document, counts=counts) + "\n"


@cache
def _template() -> Template:
    return page_template(
        "page.html.jinja",
        {"number": _number, "percent": percent, "plot": plot, "value": _value},
        {"plot_width": PLOT_WIDTH, "plot_height": PLOT_HEIGHT},
    )


def page_template(
    name: str, filters: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]
) -> Template:
    """Return the template `name` of this room with its filters and global values.

    Every page has the filter `visible` and the value `style`, the CSS of all reports.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    room = files("finetune_trainer.report")
    environment.filters.update(visible=lambda text: visible(str(text)), **filters)
    environment.globals.update(style=room.joinpath("style.css").read_text(encoding="utf-8"), **values)
    return environment.from_string(room.joinpath(name).read_text(encoding="utf-8"))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _value(value: Any) -> str:
    """Return a setting or identity as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return visible(str(value))
