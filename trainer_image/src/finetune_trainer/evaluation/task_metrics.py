"""Judges generated answers against reference answers: exact text, valid JSON, and equal fields of JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.train_result import Metric, MetricResult
from finetune_trainer.data.rows.strict_json import JsonError, parse_json
from finetune_trainer.evaluation.shares import share_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METRICS: tuple[Metric, ...] = ("ExactMatch", "JsonValid", "JsonFields")
_ABSENT = object()
_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class AnsweredRow:
    """The texts of one row, without the tokens that end an answer."""

    reference: str
    base: str
    tuned: str


def measure(rows: Sequence[AnsweredRow], wanted: Sequence[Metric] | None) -> tuple[MetricResult, ...]:
    """Return the `wanted` metrics in their order. None means all that the reference answers allow.

    Exact match is always allowed, and the metrics of JSON if every reference is a JSON object or array. If a job wants
    these, only the rows with such a reference count.
    """
    if not rows:
        return unmeasured(wanted or METRICS[:1], "no row was answered")
    chosen = METRICS if wanted is None else wanted
    results = []
    for name in chosen:
        judged = [row for row in rows if name == "ExactMatch" or is_json_answer(row.reference)]
        if wanted is None and len(judged) < len(rows):
            continue
        results.append(_measured(name, judged))
    return tuple(results)


def unmeasured(wanted: Sequence[Metric], reason: str) -> tuple[MetricResult, ...]:
    """Return the metrics without numbers, and why."""
    return tuple(MetricResult(name=name, rows=0, reason=reason) for name in wanted)


def score(metric: Metric, reference: str, answer: str) -> float:
    """Return the share from 0 to 1 that one answer gets."""
    if metric == "ExactMatch":
        return float(reference.strip() == answer.strip())
    return json_valid(answer) if metric == "JsonValid" else json_fields(reference, answer)


def is_json_answer(text: str) -> bool:
    """Return whether a reference is a JSON object or array as a whole. A bare number or word is text."""
    return isinstance(_parsed(text), dict | list)


def json_valid(answer: str) -> float:
    """Return 1 if the whole answer is JSON (RFC 8259), else 0."""
    return float(_parsed(answer) is not _ABSENT)


def json_fields(reference: str, answer: str) -> float:
    """Return the share of the reference's fields that the answer has with an equal value, 0 for an answer without JSON.

    A field is a value that is no object or array, or an empty one, at its path of keys and positions. Fields that only the
    answer has are not counted. Numbers are equal if their values are.
    """
    wanted = dict(fields(_parsed(reference)))
    found = _parsed(answer)
    given = {} if found is _ABSENT else dict(fields(found))
    if not wanted:
        return 0.0
    return sum(_equal(value, given.get(path, _ABSENT)) for path, value in wanted.items()) / len(wanted)


def fields(value: Any) -> Iterator[tuple[_Path, Any]]:
    """Yield (path, value) of every field of a JSON value, as `json_fields` defines it."""
    pending: list[tuple[_Path, Any]] = [((), value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, dict) and item:
            pending += [((*path, key), inner) for key, inner in item.items()]
        elif isinstance(item, list) and item:
            pending += [((*path, index), inner) for index, inner in enumerate(item)]
        else:
            yield path, item


def _measured(name: Metric, rows: Sequence[AnsweredRow]) -> MetricResult:
    if not rows:
        return unmeasured([name], "no reference answer is a JSON object or array")[0]
    base = [score(name, row.reference, row.base) for row in rows]
    tuned = [score(name, row.reference, row.tuned) for row in rows]
    differences = [after - before for before, after in zip(base, tuned, strict=True)]
    return MetricResult(
        name=name,
        rows=len(rows),
        base=math.fsum(base) / len(rows),
        tuned=math.fsum(tuned) / len(rows),
        difference=math.fsum(differences) / len(rows),
        interval=share_interval(differences),
    )


def _parsed(text: str) -> Any:
    """Return the JSON value that the whole text is, or `_ABSENT`. Space around it is allowed."""
    try:
        return parse_json(text.strip())
    except JsonError:
        return _ABSENT


def _equal(first: Any, second: Any) -> bool:
    """Compare two fields. In Python, True equals 1; in JSON it does not."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (first, second)]
    if all(numbers):
        return bool(first == second)
    return type(first) is type(second) and bool(first == second)
