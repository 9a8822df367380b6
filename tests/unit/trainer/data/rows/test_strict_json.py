from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.data.rows.strict_json import MAXIMUM_DEPTH, JsonError, kind_of, parse_json, shown
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e400"])
def test_numbers_that_are_not_finite_are_not_json(text: str) -> None:
    assert isinstance(json.loads(text), float | list | dict)
    with pytest.raises(JsonError, match=r"is not JSON|too large"):
        parse_json(text)


@pytest.mark.parametrize(("text", "position"), [('{"a": [}', 7), ('{"é" 1}', 5), ("", 0), ('"\n"', 1)])
def test_a_fault_has_its_character_position(text: str, position: int) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert caught.value.position == position


def test_two_equal_keys_in_one_object_are_an_error_that_names_the_key() -> None:
    with pytest.raises(JsonError, match='the key "a" appears twice in one object'):
        parse_json('{"b": 0, "a": 1, "a": 2}')
    assert parse_json('[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]


def test_nesting_is_accepted_up_to_the_maximum_depth() -> None:
    deepest = "[" * MAXIMUM_DEPTH + "]" * MAXIMUM_DEPTH
    assert parse_json(deepest) == json.loads(deepest)
    for text in (f"[{deepest}]", '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(JsonError, match="nested more than 100 levels deep"):
            parse_json(text)


def test_many_brackets_in_sequence_do_not_count_as_nested() -> None:
    assert len(parse_json("[" + ",".join(["[]"] * 500) + "]")) == 500


def test_a_number_with_more_digits_than_python_converts_is_an_error() -> None:
    with pytest.raises(JsonError, match="too many digits"):
        parse_json("1" * 5000)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({}, "object"),
        ([], "array"),
        ("", "string"),
        (True, "boolean"),
        (1, "number"),
        (1.5, "number"),
        (None, "null"),
    ],
)
def test_a_value_has_the_name_of_its_json_type(value: Any, kind: str) -> None:
    assert kind_of(value) == kind


@given(value=st.recursive(st.none() | st.text() | st.integers(), st.lists), limit=st.integers(8, 60))
def test_any_value_is_shown_in_printable_ascii_of_limited_length(value: Any, limit: int) -> None:
    text = shown(value, limit)
    assert len(text) <= limit
    assert text.isascii()
    assert text.isprintable()
