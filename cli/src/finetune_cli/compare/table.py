"""The comparison of two jobs as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_cli.text import NOTHING, PLAIN_WIDTH, columns, duration, printable

_LONGEST = 24
_TITLES = {"spec": "Spec", "dataset": "Dataset", "plan": "Plan"}


def table(result: Mapping[str, Any]) -> str:
    """Return the document as text."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    names = [job["name"] for job in result["jobs"]]
    header: list[str | None] = ["", *(_short(name) for name in names)]
    yield from columns(header, list(_facts(result)))
    for member, title in _TITLES.items():
        yield ""
        rows = [[item["path"], _short(item["first"]), _short(item["second"])] for item in result[member]]
        yield from (
            columns([f"{title} differs in", *header[1:]], rows) if rows else [f"{title}: no difference"]
        )
    yield ""
    yield from _evaluation(result, names)


def _facts(result: Mapping[str, Any]) -> Iterator[list[Any]]:
    for label, member in (("Phase", "phase"), ("Reason", "reason"), ("Model", "model"), ("GPU", "gpu")):
        yield [label, *(_short(job[member]) for job in result["jobs"])]
    for stage in ("prepare", "train", "merge"):
        times = [item[f"{stage}Seconds"] for item in result["times"]]
        yield [f"{stage.capitalize()} time", *(None if value is None else duration(value) for value in times)]
    yield ["GPU hours", *(f"{item['gpuHours']:.2f}" for item in result["times"])]


def _evaluation(result: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name, found in zip(names, result["evaluations"], strict=True):
        if found:
            low, high = found.get("interval") or (NOTHING, NOTHING)
            text = (
                f"{name}: {found.get('verdict')}, loss {found.get('baseLoss')} -> {found.get('tunedLoss')} "
            )
            yield from _wrapped(
                f"{text}(difference {found.get('difference')}, 95 % interval {low} to {high})"
            )
    if result["obstacle"] is not None:
        yield from _wrapped(f"The results cannot be compared: {result['obstacle']}.")
        return
    for item in result["measures"]:
        text = f"{item['name']}: {item['first']:.4g} and {item['second']:.4g}, difference {item['difference']:+.4g}"
        interval = f"(95 % interval {item['low']:+.4g} to {item['high']:+.4g})"
        better = None if item["better"] is None else names[item["better"] == "second"]
        end = "the difference is not significant" if better is None else f"{better} is better"
        yield from _wrapped(f"{text} {interval}: {end}.")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), PLAIN_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _short(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).lower() if isinstance(value, bool) else printable(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
