"""Whether two jobs differ in a measure by more than chance.

Each job has the paired difference between its tuned and its base model with a 95 % interval. If both jobs have the same base
and the same held-out rows, the difference of the two differences is that of the tuned models. Its interval here is
sqrt(h1^2 + h2^2) wide on each side, with the half-widths h1 and h2, as for independent measurements. On the same rows the
errors of both jobs mostly have the same sign, so the true interval is narrower: the test is cautious.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any, Literal

from finetune_cli.text import number

Better = Literal["first", "second"]


@dataclass(frozen=True)
class Measured:
    """A measure of one job: the value of the tuned model, and its difference from the base with the 95 % interval."""

    tuned: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A measure of two jobs. `difference` is second minus first, and `better` is None if chance may explain it."""

    name: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: Better | None


def obstacle(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return why the evaluations of two jobs cannot be compared; None if they can."""
    one, two = first.get("status") or {}, second.get("status") or {}
    for job, status in ((first, one), (second, two)):
        if not status.get("evaluation"):
            return f"{job['metadata']['name']} has no evaluation"
    if not _same(one, two, "model", "digest"):
        return "the base models differ"
    if not _same(one, two, "dataset", "digest") and not _same_validation(one, two):
        return "the validation rows differ; give both jobs the same dataset.validation.source"
    if one["evaluation"].get("rows") != two["evaluation"].get("rows"):
        return "the numbers of validation rows differ; give both jobs the same evaluation.maximumRows"
    return None


def _same(one: Mapping[str, Any], two: Mapping[str, Any], member: str, name: str) -> bool:
    values = [(status.get(member) or {}).get(name) for status in (one, two)]
    return values[0] is not None and values[0] == values[1]


def _same_validation(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Return True if the rows come from the same bytes and equally many were kept."""
    return _same(one, two, "dataset", "validationSource") and _same(one, two, "dataset", "validationExamples")


def comparisons(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Comparison]:
    """Compare the evaluations (`status.evaluation`) of two jobs without an obstacle."""
    one, two = _measures(first), _measures(second)
    for name in one:
        if name in two:
            yield compare(name, one[name], two[name], higher_is_better=name != "Loss")


def compare(name: str, first: Measured, second: Measured, *, higher_is_better: bool) -> Comparison:
    """Compare one measure."""
    difference = second.difference - first.difference
    half = hypot(first.high - first.low, second.high - second.low) / 2
    low, high = difference - half, difference + half
    better: Better | None = None
    if low > 0 or high < 0:
        better = "second" if (difference > 0) == higher_is_better else "first"
    return Comparison(name, first.tuned, second.tuned, difference, low, high, better)


def _measures(evaluation: Mapping[str, Any]) -> dict[str, Measured]:
    """Return the measures of one job by name. Those that were not measured, or whose numbers are unreadable, are absent."""
    loss = {**evaluation, "tuned": evaluation.get("tunedLoss")}
    named = {"Loss": loss, "TokenAccuracy": evaluation.get("tokenAccuracy") or {}}
    named |= {
        metric["name"]: metric for metric in evaluation.get("metrics") or () if not metric.get("reason")
    }
    found = {}
    for name, item in named.items():
        low, high = (item.get("interval") or (None, None))[:2]
        values = [number(value) for value in (item.get("tuned"), item.get("difference"), low, high)]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found[name] = Measured(*known)
    return found
