from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.conversations.shapes import (
    UNKNOWN,
    Names,
    has_columns,
    is_by_columns,
    list_of,
    messages_column,
    pairs_of,
    shape_of,
    simplified,
)

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def known(value: dict[str, Any]) -> bool:
    return shape_of(value) != UNKNOWN


@pytest.mark.parametrize(
    ("value", "place", "expected"),
    [
        ({"messages": CHAT}, "messages[0].role", "messages[0].role"),
        ({"Messages": CHAT}, "messages[0].role", "Messages[0].role"),
        ({"data": {" Messages ": CHAT}}, "messages", "data. Messages "),
        ({"data": {"messages": CHAT}, "tools": []}, "tools", "tools"),
        ({"data": {"messages": CHAT, "tools": []}}, "tools", "data.tools"),
        ({"[]": CHAT}, "[0].role", "[0].role"),
    ],
)
def test_places_have_the_names_of_the_file(value: dict[str, Any], place: str, expected: str) -> None:
    row, names = simplified(value, known)
    assert known(row)
    assert names.place(place) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"messages": CHAT}, "b": {"messages": CHAT}},
        {"a": {"b": {"messages": CHAT}}},
        {"a": [{"messages": CHAT}]},
        {"a": 1},
        {},
    ],
)
def test_a_row_that_is_deeper_or_not_alone_is_not_guessed(value: dict[str, Any]) -> None:
    assert simplified(value, known) == (value, Names())


def test_columns_of_known_names_win_over_the_same_in_capitals() -> None:
    value = {"prompt": "q", "Prompt": "x", "Completion": "a"}
    row, names = simplified(value, known)
    assert pairs_of(row) == [("prompt", "completion")]
    assert row["prompt"] == "q"
    assert names.place("completion") == "Completion"


def test_roles_as_columns_count_only_without_other_pairs() -> None:
    assert pairs_of({"user": "q", "assistant": "a"}) == [("user", "assistant")]
    assert pairs_of({"user": "q", "assistant": "a", "input": "x", "output": "y"}) == [("input", "output")]


def test_an_object_as_messages_is_a_row_unless_it_has_them_by_column() -> None:
    by_column = {"role": ["user"], "content": ["q"]}
    assert is_by_columns(by_column)
    assert not is_by_columns({"role": ["user"], "content": []})
    assert not is_by_columns({"role": "user", "content": "q"})
    assert messages_column({"messages": by_column}) == "messages"
    assert messages_column({"messages": {"messages": CHAT}}) is None
    assert list_of(by_column) == [{"role": "user", "content": "q"}]
    assert list_of([CHAT]) == CHAT


@pytest.mark.parametrize("pair", [("chosen", "rejected"), ("response_a", "response_b"), ("winner", "loser")])
def test_two_answers_of_different_worth_are_a_preference(pair: tuple[str, str]) -> None:
    row = {"prompt": "q", **dict.fromkeys(pair, "a")}
    assert shape_of(row).name == "Preference"
    assert shape_of({**row, "messages": CHAT[:1]}).name == "Preference"
    assert shape_of({**row, "messages": CHAT}).name == "Messages"
    assert not has_columns(row, "PromptCompletion")
