"""The metrics on generated answers; no answer may make them fail."""

from __future__ import annotations

import json

import pytest
from finetune_trainer.evaluation.task_metrics import (
    AnsweredRow,
    is_json_answer,
    json_fields,
    json_valid,
    measure,
    score,
)
from hypothesis import given
from hypothesis import strategies as st

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Paris", 1.0), (" Paris\n", 1.0), ("paris", 0.0), ("Paris.", 0.0), ("", 0.0), ("Paris Paris", 0.0)],
)
def test_an_exact_answer_differs_in_outer_space_only(answer: str, expected: float) -> None:
    assert score("ExactMatch", "Paris", answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1}', 1.0),
        (" [1, 2]\n", 1.0),
        ("3", 1.0),
        ('{"a": 1', 0.0),
        ('Here it is: {"a": 1}', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1, "a": 2}', 0.0),
        ("[" * 100_000, 0.0),
        ("9" * 10_000, 0.0),
        ("\ud800", 0.0),
        ("", 0.0),
    ],
)
def test_json_is_valid_as_a_whole_or_not_at_all(answer: str, expected: float) -> None:
    assert json_valid(answer) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1.0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 0.5),
        ('{"a": 1}', '{"a": 1, "more": 2}', 1.0),
        ('{"a": {"b": 1, "c": [1, 2]}}', '{"a": {"b": 1, "c": [1, 3]}}', 2 / 3),
        ('{"a": 1}', '{"a": 1.0}', 1.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": 0}', '{"a": false}', 0.0),
        ('{"a": null}', "{}", 0.0),
        ('{"a": []}', '{"a": []}', 1.0),
        ('{"a": []}', '{"a": {}}', 0.0),
        ('{"a": [1]}', '{"a": {"0": 1}}', 0.0),
        ("{}", "{}", 1.0),
        ("{}", "[]", 0.0),
        ('{"a": 1}', "no JSON", 0.0),
        ('{"a": 1}', "", 0.0),
    ],
)
def test_fields_are_compared_by_path_and_value(reference: str, answer: str, expected: float) -> None:
    assert json_fields(reference, answer) == pytest.approx(expected)


@given(_JSON)
def test_a_json_answer_has_all_fields_of_itself(value: object) -> None:
    text = json.dumps(value)
    assert json_fields(text, text) == 1.0


@given(st.text(), st.text())
def test_any_texts_get_a_share(reference: str, answer: str) -> None:
    for metric in ("ExactMatch", "JsonValid", "JsonFields"):
        assert 0 <= score(metric, reference, answer) <= 1


@pytest.mark.parametrize(("text", "expected"), [("{}", True), (" [1]", True), ("42", False), ("yes", False)])
def test_a_bare_number_or_word_is_no_json_answer(text: str, *, expected: bool) -> None:
    assert is_json_answer(text) == expected


JSON_ROWS = [AnsweredRow('{"a": 1, "b": 2}', "no", '{"a": 1, "b": 3}')] * 10


def test_json_answers_get_all_metrics_by_default() -> None:
    exact, valid, fields = measure(JSON_ROWS, None)
    assert (exact.name, exact.base, exact.tuned, exact.difference) == ("ExactMatch", 0.0, 0.0, 0.0)
    assert (valid.name, valid.base, valid.tuned, valid.rows) == ("JsonValid", 0.0, 1.0, 10)
    assert (fields.name, fields.base, fields.tuned) == ("JsonFields", 0.0, 0.5)
    assert valid.interval is not None
    assert 0 < valid.interval[0] < 1 == valid.interval[1]


def test_one_text_answer_leaves_the_metrics_of_json_out_by_default() -> None:
    rows = [*JSON_ROWS, AnsweredRow("yes", "yes", "no")]
    assert [metric.name for metric in measure(rows, None)] == ["ExactMatch"]


def test_wanted_metrics_of_json_count_only_rows_with_json() -> None:
    rows = [*JSON_ROWS, AnsweredRow("yes", "yes", "no")]
    fields, exact = measure(rows, ("JsonFields", "ExactMatch"))
    assert (fields.name, fields.rows) == ("JsonFields", 10)
    assert (exact.name, exact.rows) == ("ExactMatch", 11)


def test_a_metric_without_rows_says_why() -> None:
    (found,) = measure([AnsweredRow("yes", "yes", "no")], ("JsonValid",))
    assert found.document() == {
        "name": "JsonValid",
        "rows": 0,
        "reason": "no reference answer is a JSON object or array",
    }
    assert [metric.reason for metric in measure([], None)] == ["no row was answered"]


def test_exchanging_base_and_tuned_changes_the_sign() -> None:
    mirrored = [AnsweredRow(row.reference, row.tuned, row.base) for row in JSON_ROWS]
    for before, after in zip(measure(JSON_ROWS, None), measure(mirrored, None), strict=True):
        assert before.interval is not None
        assert after.interval is not None
        assert before.interval == pytest.approx((-after.interval[1], -after.interval[0]))
