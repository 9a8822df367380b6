from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

USER = {"role": "user", "content": "q"}


ANSWER = {"role": "assistant", "content": "a"}


FUNCTION = {"name": "f", "arguments": {"x": 1}}


CALL = {"type": "function", "function": FUNCTION}


def messages(*items: Any) -> list[dict[str, Any]]:
    return parse_conversation({"messages": list(items)}, "Keep").messages


def rejection(*items: Any, **columns: Any) -> RowRejected:
    with pytest.raises(RowRejected) as caught:
        parse_conversation({"messages": list(items), **columns}, "Keep")
    return caught.value


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two"),
        ([{"type": "text", "text": "x", "image_url": None}], "x"),
        ([{"text": "x"}, "y", {"type": "input_text", "text": "z"}], "xyz"),
        ([], ""),
    ],
)
def test_the_texts_of_several_parts_are_joined_unchanged(parts: list[Any], text: str) -> None:
    assert messages({"role": "user", "content": parts}, ANSWER)[0] == {"role": "user", "content": text}
    if text:
        assert messages(USER, {"role": "assistant", "content": parts})[1]["content"] == text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "image"},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "refusal", "refusal": "no"},
        {"type": "thinking", "thinking": "hm"},
    ],
)
def test_a_part_that_is_not_text_is_rejected_by_its_type(part: dict[str, Any]) -> None:
    found = rejection({"role": "user", "content": [{"type": "text", "text": "see:"}, part]}, ANSWER)
    assert (found.reason, found.field) == (RowReason.UNSUPPORTED_CONTENT, "messages[0].content[1].type")
    assert part["type"] in found.detail


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "assistant", "tool_calls": [FUNCTION]},
        {"role": "assistant", "tool_calls": FUNCTION},
        {"role": "assistant", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "assistant", "content": "", "function_call": FUNCTION, "tool_calls": []},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "tool_call", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
    ],
)
def test_every_spelling_of_a_tool_call_becomes_the_same_call(message: dict[str, Any]) -> None:
    assert messages(USER, message)[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("User", "user"), ("HUMAN", "user"), (" prompter ", "user"),
        ("ASSISTANT", "assistant"), ("AI", "assistant"), ("Model", "assistant"), ("ChatGPT", "assistant"),
        ("System", "system"), ("Developer", "developer"),
        ("Tool Response", "tool"), ("function-result", "tool"), ("ipython", "tool"),
    ],
)  # fmt: skip
def test_roles_are_known_in_any_spelling_and_by_common_names(name: str, role: str) -> None:
    found = messages({"role": name, "content": "x"}, USER, ANSWER)
    assert found[0] == {"role": role, "content": "x"}


@pytest.mark.parametrize("name", ["Function Call", "functionCall", "tool-call"])
def test_a_call_is_known_in_any_spelling_of_its_role(name: str) -> None:
    call = {"from": name, "value": json.dumps(FUNCTION)}
    assert messages(USER, call)[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_members_of_a_message_may_have_capitals() -> None:
    items = [{"Role": "User", "Content": "q", "Extra": 1}, {"From": "GPT", "Value": "a"}]
    assert messages(*items) == [{**USER, "Extra": 1}, ANSWER]


def test_parallel_calls_and_their_results_keep_their_ids() -> None:
    calls = [{"id": "a1", **CALL}, {"id": "a2", "name": "g", "arguments": {}}]
    found = messages(
        USER,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a1", "name": "f", "content": "1"},
        {"role": "function", "name": "g", "content": "2"},
        ANSWER,
    )
    assert [call["id"] for call in found[1]["tool_calls"]] == ["a1", "a2"]
    assert found[2] == {"role": "tool", "tool_call_id": "a1", "name": "f", "content": "1"}
    assert found[3] == {"role": "tool", "name": "g", "content": "2"}


def test_an_empty_list_of_calls_means_no_calls() -> None:
    """Templates branch on `tool_calls is defined`."""
    assert messages(USER, {**ANSWER, "tool_calls": []})[1] == ANSWER


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        [{"name": "f", "parameters": {}}],
        [{"type": "function", "name": "f", "parameters": {}}],
        '[{"name": "f", "parameters": {}}]',
        ['{"name": "f", "parameters": {}}'],
    ],
)
def test_every_spelling_of_a_tool_becomes_the_same_tool(tools: Any) -> None:
    conversation = parse_conversation({"messages": [USER, ANSWER], "tools": tools}, "Keep")
    assert conversation.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("tools", [None, [], "", " "])
def test_an_empty_column_of_tools_means_no_tools(tools: Any) -> None:
    assert parse_conversation({"messages": [USER, ANSWER], "tools": tools}, "Keep").tools is None


def test_reasoning_and_unknown_members_are_kept() -> None:
    message = {
        **ANSWER,
        "reasoning_content": "r",
        "thinking": "t",
        "reasoning": "s",
        "name": "n",
        "extra": {"k": 1},
    }
    assert messages(USER, message)[1] == message


@pytest.mark.parametrize(
    ("items", "place", "said"),
    [
        ([USER, {"role": "narrator", "content": "x"}], "messages[1].role", "must be one of assistant,"),
        ([{"content": "x"}], "messages[0].role", "found null"),
        ([{"role": "user"}], "messages[0].content", "must be a string, found none"),
        ([{"role": "user", "content": {"a": 1}}], "messages[0].content", "found object"),
        ([{"role": "user", "tool_calls": [CALL]}], "messages[0].content", "found none"),
        ([USER, {**ANSWER, "weight": 0.5}], "messages[1].weight", "must be 0 or 1, found 0.5"),
        ([USER, {**ANSWER, "train": 1}], "messages[1].train", "must be true or false"),
        ([USER, {**ANSWER, "tool_calls": [{"id": 1}]}], "messages[1].tool_calls[0].function", "with a name"),
        (
            [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{'x': 1}"}]}],
            "messages[1].tool_calls[0].function.arguments",
            "Python's own notation is not JSON",
        ),
        ([{**USER, "k": {"in": ["\ud800"]}}, ANSWER], "messages[0].k.in", "half of a surrogate pair"),
        ([{**USER, "day": datetime.date(2024, 1, 2)}, ANSWER], "messages[0].day", "must be text, found date"),
        ([{**USER, "map": {1: "x"}}, ANSWER], "messages[0].map", "must have texts as keys, found number"),
        ([{**USER, "data": b"x"}, ANSWER], "messages[0].data", "must be text, found bytes"),
    ],
)
def test_a_fault_in_a_message_is_reported_with_its_position(items: list[Any], place: str, said: str) -> None:
    found = rejection(*items)
    assert (found.reason, found.field) == (RowReason.INVALID_MESSAGES, place)
    assert said in found.detail


def test_tool_call_arguments_given_as_text_become_an_object() -> None:
    call = {"function": {"name": "f", "arguments": json.dumps({"a": 1})}}
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]}
    (parsed,) = parse_conversation(row, "Keep").messages[1]["tool_calls"]
    assert parsed["function"]["arguments"] == {"a": 1}
