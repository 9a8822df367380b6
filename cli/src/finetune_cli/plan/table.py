"""The result of `finetune plan` as text for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TextIO

from finetune_operator.api.quantities import binary_size
from finetune_operator.sizing.memory.terms import Phase

_EIGHTHS = " ▏▎▍▌▋▊▉"
_NARROWEST, _WIDEST = 60, 120
_SIZE_WIDTH = 10
VERDICTS = {
    "Fits": "fits",
    "Borderline": "is borderline on",
    "DoesNotFit": "does not fit",
    "GpuNotSupported": "does not run on",
    "GpuMemoryUnknown": "cannot be checked for",
}


@dataclass(frozen=True)
class Style:
    """The width of lines in characters, and the characters of bars: blocks or `#`."""

    width: int
    blocks: bool

    def bar(self, size: int, whole: int, cells: int) -> str:
        """`size` of `whole` as a bar of at most `cells` characters. Every size above 0 is visible."""
        if whole <= 0 or size <= 0:
            return ""
        eighths = max(1, min(cells * 8, round(cells * 8 * size / whole)))
        if not self.blocks:
            return "#" * max(1, round(eighths / 8))
        return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def style_of(output: TextIO) -> Style:
    """The style of a terminal: its width, and blocks if it can show them. Files and pipes have 80 plain columns."""
    if not output.isatty():
        return Style(80, blocks=False)
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((80, 24)).columns))
    return Style(width, blocks="utf" in (output.encoding or "").lower())


def table(result: dict[str, Any], style: Style) -> str:
    """The document of `finetune plan` as text."""
    return "\n".join(_lines(result, style)) + "\n"


def _lines(result: dict[str, Any], style: Style) -> Iterator[str]:
    yield from _wrapped(_headline(result), style)
    if result["chosen"] is not None:
        yield ""
        yield from _sizes(result, style)
        yield ""
        yield from _chosen(result, style)
    for warning in result["warnings"]:
        yield ""
        yield from _wrapped(f"Warning: {warning}", style)
    if not result["fits"]:
        yield ""
        for reason in result["reasons"]:
            yield from _wrapped(reason, style)


def _headline(result: dict[str, Any]) -> str:
    model = result["model"]
    if result["verdict"] == "UnsupportedModel":
        return (
            "The model cannot be tuned."
            if model is None
            else "The model's weights cannot be shared out to GPUs."
        )
    if model is None:
        return "The model's memory cannot be computed."
    gpu, usable = result["gpu"], result["usableBytes"]
    name = f"{model['family']}, {model['parameters'] / 1e9:.2f} billion parameters"
    if gpu is None:
        return f"{name}: {VERDICTS[result['verdict']].removesuffix(' on').removesuffix(' for')} any GPU"
    size = "of unknown memory" if usable is None else f"({binary_size(usable)})"
    return f"{name}: {VERDICTS[result['verdict']]} {gpu['product']} {size}"


def _sizes(result: dict[str, Any], style: Style) -> Iterator[str]:
    """Every phase with its peak, the terms of the largest phase and of the device, and the total."""
    device, usable = result["deviceBytes"], result["usableBytes"]
    whole = max(device, usable or 0)
    phases = [phase.value for phase in Phase if phase.value in result["phases"]]
    for phase in phases:
        if phase not in {result["bottleneck"], Phase.DEVICE.value}:
            yield _row(phase, result["phases"][phase], whole, style)
    for phase in (result["bottleneck"], Phase.DEVICE.value):
        mark = "  peak" if phase == result["bottleneck"] else "  outside torch"
        yield _row(phase, result["phases"].get(phase, 0), whole, style, mark)
        terms = [term for term in result["terms"] if term["phase"] == phase and term["bytes"] > 0]
        for term in sorted(terms, key=lambda term: -term["bytes"]):
            yield _row(f"  {term['name']}", term["bytes"], whole, style)
    yield _row("Needed", device, whole, style)
    yield f"{'':{_label_width(style)}} {binary_size(result['lowBytes'])} to {binary_size(result['highBytes'])}"
    if usable is not None:
        yield _row("Usable", usable, whole, style)


def _row(label: str, size: int, whole: int, style: Style, mark: str = "") -> str:
    width = _label_width(style)
    cells = style.width - width - _SIZE_WIDTH - 3
    shown = label if len(label) <= width else label[: width - 1] + "…"
    # The mark follows the bar if the line has room for it.
    bar = style.bar(size, whole, cells)
    line = f"{shown:{width}} {binary_size(size):>{_SIZE_WIDTH}}  {bar}"
    return (line + mark if len(line + mark) <= style.width else line).rstrip()


def _label_width(style: Style) -> int:
    return min(34, style.width // 3)


def _chosen(result: dict[str, Any], style: Style) -> Iterator[str]:
    """The values of the run, with the reason for each chosen value."""
    reasons = {choice["name"]: choice["reason"] for choice in result["choices"]}
    values = {name: _value(value) for name, value in result["chosen"].items()}
    width = max(len(name) for name in values) + 1
    for name, value in values.items():
        text = f"{name + ':':{width}} {value}"
        if name in reasons:
            text += f" ({reasons[name]})"
        yield from _wrapped(text, style, " " * (width + 1))
    if "gpu" in reasons:
        yield from _wrapped(
            f"{'gpu:':{width}} {result['gpu']['product']} ({reasons['gpu']})", style, " " * (width + 1)
        )
    yield from _forecast(result, style, width)
    nodes = _nodes(result["offers"])
    if nodes:
        yield from _wrapped(f"{'nodes:':{width}} {nodes}", style, " " * (width + 1))


def _forecast(result: dict[str, Any], style: Style, width: int) -> Iterator[str]:
    """Time and cost with their bounds, and where they come from."""
    duration, cost = result["duration"], result["cost"]
    if duration is None:
        return
    text = "not known"
    if "expectedSeconds" in duration:
        low, expected, high = (
            duration_text(duration[f"{bound}Seconds"]) for bound in ("low", "expected", "high")
        )
        text = f"{expected}, from {low} to {high}; {duration['gpuHours']} GPU hours"
    indent = " " * (width + 1)
    yield from _wrapped(f"{'duration:':{width}} {text} ({duration['reason']})", style, indent)
    text = "not known"
    if "expected" in cost:
        low, expected, high = (_money(cost[bound]) for bound in ("low", "expected", "high"))
        text = f"{expected} {cost['currency']}, from {low} to {high}"
    yield from _wrapped(f"{'cost:':{width}} {text} ({cost['reason']})", style, indent)


def _money(amount: str) -> str:
    """An amount in hundredths, or as it is if it is smaller than one."""
    value = Decimal(amount)
    return f"{value:.2f}" if value >= Decimal("0.01") else amount


def duration_text(seconds: int) -> str:
    """Seconds in the two largest units that people use."""
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{round(hours / 24)} days"


def _nodes(offers: Sequence[dict[str, Any]]) -> str:
    """The number of suitable nodes and GPU profiles by product; empty for named GPUs."""
    counts: dict[tuple[str, str], int] = {}
    for offer in offers:
        if offer["node"] is not None or offer["profile"] is not None:
            kind = "node" if offer["node"] is not None else "GPU profile"
            counts[offer["product"], kind] = counts.get((offer["product"], kind), 0) + 1
    return ", ".join(f"{count} {kind}(s) with {product}" for (product, kind), count in counts.items())


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(text: str, style: Style, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, style.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
