from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.data.rows.documents import document_kind, first_members


def kind_of_document(value: Any, cut: int | None = None) -> str | None:
    kind = document_kind(first_members(json.dumps(value).encode()[:cut], 0))
    return None if kind is None else kind.what


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"prompt": {"0": "a"}, "completion": {"0": "b"}}, "each as an object of numbered values"),
        ({"Prompt": ["a"], "Completion": ["b"]}, "each as a list of values"),
        ({"user": ["a"], "assistant": ["b"]}, "each as a list of values"),
        ({"error": {"code": 404, "message": "no such file"}}, "an error that a server gave"),
        (
            {"message": "Not Found", "status": "404"},
            "an error that a server gave in place of the file: 'Not Found'",
        ),
        ({"one": {"messages": []}, "two": {"messages": []}}, "an object of rows by name"),
        ({"model_type": "llama"}, "a configuration file of a model"),
    ],
)
def test_documents_without_rows_are_named(value: Any, said: str) -> None:
    assert said in (kind_of_document(value) or "")


def test_the_beginning_of_a_large_table_by_columns_is_enough() -> None:
    value = {"prompt": {str(n): "text" for n in range(1000)}, "completion": {}}
    assert "numbered values" in (kind_of_document(value, cut=500) or "")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}], "error": "none"},
        {"message": "hello"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": []},
        {"data": [{"prompt": "a"}], "columns": 3},
        {"0": "a"},
        {"one": {"messages": []}},
        {"prompt": {"role": "user"}, "completion": {"role": "assistant"}},
        {"tags": ["a"], "keywords": ["b"]},
    ],
)
def test_documents_that_may_be_or_hold_rows_are_not_named(value: Any) -> None:
    assert kind_of_document(value) is None


def test_members_are_read_up_to_a_fault() -> None:
    assert first_members(b' {"a": [1, 2], "b" 5}', 1) == [("a", b'[1, 2], "b" 5}')]
    assert first_members(b"[1]", 0) == []
