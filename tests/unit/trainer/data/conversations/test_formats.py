from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.conversations.formats import Detection, detect_format, parse_row
from finetune_trainer.data.rows.reader import Row
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
SYSTEM = {"role": "system", "content": "be kind"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
UNREADABLE = RowRejected(RowReason.INVALID_JSON, "column 1", "Expecting value")


def rows(*values: Any) -> list[Row]:
    return [Row(number, value, 0) for number, value in enumerate(values, start=1)]


def parsed(value: dict[str, Any], name: str) -> Conversation:
    return parse_row(value, name, "Keep")


def rejection(value: dict[str, Any], name: str) -> tuple[RowReason, str]:
    with pytest.raises(RowRejected) as caught:
        parsed(value, name)
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    ("value", "name", "why"),
    [
        ({"messages": CHAT}, "Messages", "column `messages` holds objects with `role` and `content`"),
        (
            {"conversations": CHAT},
            "Messages",
            "column `conversations` holds objects with `role` and `content`",
        ),
        (
            {"conversations": SHARED},
            "ShareGPT",
            "column `conversations` holds objects with `from` and `value`",
        ),
        ({"messages": SHARED}, "ShareGPT", "column `messages` holds objects with `from` and `value`"),
        ({"conversation": json.dumps(SHARED)}, "ShareGPT", "column `conversation` holds objects with `from`"),
        ({"messages": CHAT, "prompt": "q", "completion": "a"}, "Messages", "column `messages`"),
        (
            {"prompt": "q", "completion": "a", "id": 1},
            "PromptCompletion",
            "columns `prompt` and `completion`",
        ),
        (
            {"prompt": CHAT[:1], "completion": CHAT[1:]},
            "PromptCompletion",
            "columns `prompt` and `completion`",
        ),
        ({"question": "q", "answer": "a"}, "PromptCompletion", "columns `question` and `answer`"),
        ({"input": "q", "output": "a"}, "PromptCompletion", "columns `input` and `output`"),
        ({"query": "q", "response": "a"}, "PromptCompletion", "columns `query` and `response`"),
        ({"user": "q", "assistant": "a"}, "PromptCompletion", "columns `user` and `assistant`"),
        ({"Human": "q", "GPT": "a"}, "PromptCompletion", "columns `human` and `gpt`"),
        (
            {"question": "q", "answer": "a", "user": "x", "assistant": "y"},
            "PromptCompletion",
            "columns `question`",
        ),
        ({"[]": CHAT}, "Messages", "each row is a list of objects with `role` and `content`"),
        (
            {"data": {"messages": CHAT}},
            "Messages",
            "column `messages` holds objects with `role` and `content` inside `data`",
        ),
        ({"conversation": {"messages": SHARED}}, "ShareGPT", "column `messages` holds objects with `from`"),
        ({"messages": CHAT, "chosen": "a", "rejected": "b"}, "Messages", "column `messages`"),
        ({"instruction": "q", "input": "", "output": "a"}, "Alpaca", "columns `instruction` and `output`"),
        (
            {"instruction": "q", "context": "c", "response": "a"},
            "Alpaca",
            "columns `instruction` and `response`",
        ),
    ],
)
def test_the_columns_decide_the_format(value: dict[str, Any], name: str, why: str) -> None:
    detection = detect_format(rows(value, UNREADABLE, value))
    assert detection.format == name
    assert detection.why.startswith(why)
    assert detection.why.endswith("in 2 of the first 3 rows")
    assert [m["content"] for m in parsed(value, name).messages][-1] == "a"


def test_most_of_the_first_rows_decide_and_no_more_than_200_are_read() -> None:
    others = [{"text": "x"}] * 40 + [{"z": 1}] * 100
    taken = iter(rows(*others, *[{"prompt": "q", "completion": "a"}] * 60, {"never": "read"}))
    assert detect_format(taken) == Detection(
        "PromptCompletion", "columns `prompt` and `completion` in 60 of the first 200 rows"
    )
    assert next(taken).value == {"never": "read"}


def test_unreadable_first_rows_do_not_fail_the_whole_dataset() -> None:
    assert detect_format(rows(UNREADABLE, UNREADABLE)).format == "Messages"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"text": "once upon a time"}, "plain text has no questions and answers"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "a preferred and a rejected answer"),
        ({"conversations": SHARED[:1], "chosen": "a", "rejected": "b"}, "a preferred and a rejected answer"),
        (
            {"input": {"messages": CHAT[:1]}, "preferred_output": CHAT[1:], "non_preferred_output": CHAT[1:]},
            "a preferred",
        ),
        ({"row": {"Prompt": "q", "Chosen": "a", "Rejected": "b"}}, "a preferred and a rejected answer"),
        (
            {"prompt": "q", "completion": "a", "label": "True"},
            "the column `label` says which answers are wanted",
        ),
        ({"role": "user", "content": "q"}, "each row is a single message"),
        ({"dialog": CHAT, "id": 1}, 'rename the column "dialog", which holds messages, to `messages`'),
        ({"title": "x", "mapping": {}}, "an export of ChatGPT"),
        ({"prompt": "q", "completion": None}, 'no column with an answer stands beside "prompt"'),
        ({"response": "a", "id": 1}, 'no column with a question stands beside "response"'),
        ({"a": {"messages": CHAT}, "b": {"messages": CHAT}}, 'found "a", "b": no known columns'),
        (
            {"prompt": "q", "completion": "a", "label": False},
            "the column `label` says which answers are wanted",
        ),
        ({"question": "q", "answer": "a", "context": "c"}, "not clear which columns hold the question"),
        ({"question": "q", "answer": "a", "response": "b"}, "not clear which columns hold the question"),
        ({"a": 1, "b\ud800": 2}, 'found "a", "b\\ud800": no known columns'),
        ({}, "found none: no known columns"),
    ],
)
def test_a_dataset_of_unknown_format_is_invalid_with_a_hint(value: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError) as caught:
        detect_format(rows(value))
    assert caught.value.reason is Reason.INVALID_DATASET
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("wanted", "value", "said"),
    [
        (
            "Messages",
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            'found "prompt", "chosen", "rejected": these are pairs',
        ),
        (
            "ShareGPT",
            {"conversations": SHARED[:1], "chosen": "a", "rejected": "b"},
            "these are pairs of a preferred",
        ),
        (
            "Alpaca",
            {"prompt": "q", "completion": "a"},
            "this is the format PromptCompletion (columns `prompt`",
        ),
        ("PromptCompletion", {"text": "x"}, "must have the columns `prompt` and `completion`"),
    ],
)
def test_rows_without_the_columns_of_the_wanted_format_are_named_once(
    wanted: str, value: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError) as caught:
        detect_format(rows(value, UNREADABLE), wanted)
    assert caught.value.reason is Reason.INVALID_DATASET
    assert said in caught.value.message


def test_one_row_with_the_columns_of_the_wanted_format_is_enough() -> None:
    values = rows({"text": "x"}, {"prompt": "q", "completion": "a"})
    assert detect_format(values, "PromptCompletion") == Detection("PromptCompletion", "set in dataset.format")
    assert detect_format(rows(UNREADABLE), "Alpaca").format == "Alpaca"


def test_a_dataset_without_rows_is_invalid() -> None:
    with pytest.raises(StageError) as caught:
        detect_format([])
    assert caught.value.reason is Reason.INVALID_DATASET


@pytest.mark.parametrize(
    ("value", "name", "messages"),
    [
        ({"messages": json.dumps(CHAT)}, "Messages", CHAT),
        ({"messages": CHAT, "system": "be kind"}, "Messages", [SYSTEM, *CHAT]),
        ({"messages": [SYSTEM, *CHAT], "system": "be kind"}, "Messages", [SYSTEM, *CHAT]),
        ({"messages": CHAT, "system": ""}, "Messages", CHAT),
        ({"conversations": SHARED, "messages": None}, "Messages", CHAT),
        ({"conversations": SHARED, "messages": "other"}, "ShareGPT", CHAT),
        ({"conversations": SHARED, "system": "be kind"}, "ShareGPT", [SYSTEM, *CHAT]),
        ({"prompt": "q", "completion": "a"}, "PromptCompletion", CHAT),
        ({"prompt": "q", "completion": "a", "response": "b"}, "PromptCompletion", CHAT),
        ({"prompt": [SYSTEM, CHAT[0]], "completion": CHAT[1:]}, "PromptCompletion", [SYSTEM, *CHAT]),
        ({"prompt": CHAT[:1], "completion": "a"}, "PromptCompletion", CHAT),
        ({"prompt": "q", "completion": " a ", "system_prompt": "be kind"}, "PromptCompletion", None),
        ({"instruction": "q", "output": "a"}, "Alpaca", CHAT),
        ({"instruction": "q", "input": " ", "output": "a", "system": None}, "Alpaca", CHAT),
        ({"instruction": "", "input": "q", "output": "a", "history": []}, "Alpaca", CHAT),
        (
            {"instruction": "do", "input": "this", "output": "done"},
            "Alpaca",
            [{"role": "user", "content": "do\n\nthis"}, {"role": "assistant", "content": "done"}],
        ),
        (
            {"instruction": "q", "output": "a", "history": [["q", "a"]], "system": "be kind"},
            "Alpaca",
            [SYSTEM, *CHAT, *CHAT],
        ),
        ({"instruction": "q", "output": "a", "history": '[["q", "a"]]'}, "Alpaca", [*CHAT, *CHAT]),
        ({"user": "q", "assistant": "a", "system": "be kind"}, "PromptCompletion", [SYSTEM, *CHAT]),
        ({"User": "q", "Model": "a"}, "PromptCompletion", CHAT),
        ({"[]": CHAT}, "Messages", CHAT),
        ({"Messages": CHAT}, "Messages", CHAT),
        ({"data": {"messages": CHAT}, "id": 1}, "Messages", CHAT),
        ({"conversation": {"messages": SHARED}, "system": "be kind"}, "ShareGPT", [SYSTEM, *CHAT]),
        ({"row": {"prompt": "q", "completion": "a"}}, "PromptCompletion", CHAT),
        ({"messages": [CHAT]}, "Messages", CHAT),
        ({"messages": [{"message": item} for item in CHAT]}, "Messages", CHAT),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, "Messages", CHAT),
        ({"prompt": CHAT[0], "completion": CHAT[1]}, "PromptCompletion", CHAT),
    ],
)
def test_each_format_gives_its_conversation(
    value: dict[str, Any], name: str, messages: list[dict[str, Any]] | None
) -> None:
    if messages is None:
        messages = [SYSTEM, CHAT[0], {"role": "assistant", "content": " a "}]
    assert parsed(value, name) == Conversation(messages)


def test_sharegpt_calls_and_observations_become_tool_turns() -> None:
    value = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "seen"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([{"name": "f", "parameters": {}}]),
    }
    assert parsed(value, "ShareGPT") == Conversation(
        [
            CHAT[0],
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "seen"},
            CHAT[1],
        ],
        [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    )


def test_answers_in_a_prompt_are_not_learned() -> None:
    conversation = parsed({"prompt": [*CHAT, CHAT[0]], "completion": "a"}, "PromptCompletion")
    assert conversation.messages == [*CHAT, *CHAT]
    assert conversation.assistant_turns == [3]


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        ({"prompt": "q"}, "Messages", (RowReason.INVALID_MESSAGES, "prompt")),
        ({}, "Messages", (RowReason.INVALID_MESSAGES, "row")),
        ({"messages": None}, "Messages", (RowReason.INVALID_MESSAGES, "messages")),
        ({"messages": {"a": 1}}, "Messages", (RowReason.INVALID_MESSAGES, "messages")),
        ({"messages": [CHAT, CHAT]}, "Messages", (RowReason.INVALID_MESSAGES, "messages")),
        ({"data": {"messages": CHAT[:1]}}, "Messages", (RowReason.NO_ASSISTANT_TURN, "data.messages")),
        ({"Messages": [{"role": "x"}]}, "Messages", (RowReason.INVALID_MESSAGES, "Messages[0].role")),
        ({"[]": [{"role": "x"}]}, "Messages", (RowReason.INVALID_MESSAGES, "[0].role")),
        ({"messages": CHAT, "system_prompt": 5}, "Messages", (RowReason.INVALID_MESSAGES, "system_prompt")),
        ({"messages": CHAT, "functions": "f"}, "Messages", (RowReason.INVALID_MESSAGES, "functions")),
        (
            {"data": {"messages": CHAT}, "functions": "f"},
            "Messages",
            (RowReason.INVALID_MESSAGES, "functions"),
        ),
        ({"messages": "[{'role': 'user'}]"}, "Messages", (RowReason.INVALID_MESSAGES, "messages")),
        ({"conversations": []}, "ShareGPT", (RowReason.INVALID_MESSAGES, "conversations")),
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "ShareGPT",
            (RowReason.INVALID_MESSAGES, "conversations[0].from"),
        ),
        (
            {"conversations": [SHARED[0], {"from": "gpt", "value": 5}]},
            "ShareGPT",
            (RowReason.INVALID_MESSAGES, "conversations[1].value"),
        ),
        (
            {"conversations": [{"from": "function_call", "value": "f(1)"}, SHARED[1]]},
            "ShareGPT",
            (RowReason.INVALID_MESSAGES, "conversations[0].value"),
        ),
        ({"messages": [SYSTEM, *CHAT], "system": "x"}, "Messages", (RowReason.INVALID_MESSAGES, "system")),
        ({"messages": CHAT, "tools": "f"}, "Messages", (RowReason.INVALID_MESSAGES, "tools")),
        ({"messages": CHAT, "images": ["x"]}, "Messages", (RowReason.UNSUPPORTED_CONTENT, "images")),
        ({"prompt": "q"}, "PromptCompletion", (RowReason.INVALID_MESSAGES, "prompt")),
        ({"question": "q"}, "PromptCompletion", (RowReason.INVALID_MESSAGES, "question")),
        ({"prompt": "q", "completion": None}, "PromptCompletion", (RowReason.INVALID_MESSAGES, "completion")),
        ({"prompt": 5, "completion": "a"}, "PromptCompletion", (RowReason.INVALID_MESSAGES, "prompt")),
        (
            {"prompt": "q", "completion": "\ud800"},
            "PromptCompletion",
            (RowReason.INVALID_MESSAGES, "completion"),
        ),
        (
            {"prompt": "q", "completion": CHAT[:1]},
            "PromptCompletion",
            (RowReason.NO_ASSISTANT_TURN, "completion"),
        ),
        ({"prompt": [5], "completion": "a"}, "PromptCompletion", (RowReason.INVALID_MESSAGES, "prompt[0]")),
        (
            {"question": "q", "answer": "a", "response": "b"},
            "PromptCompletion",
            (RowReason.INVALID_MESSAGES, "question"),
        ),
        ({"output": "a"}, "Alpaca", (RowReason.INVALID_MESSAGES, "output")),
        ({"instruction": "q"}, "Alpaca", (RowReason.INVALID_MESSAGES, "instruction")),
        ({"instruction": "q", "input": 5, "output": "a"}, "Alpaca", (RowReason.INVALID_MESSAGES, "input")),
        (
            {"instruction": "q", "input": "x", "context": "y", "output": "a"},
            "Alpaca",
            (RowReason.INVALID_MESSAGES, "context"),
        ),
        (
            {"instruction": "q", "output": "a", "history": [["q"]]},
            "Alpaca",
            (RowReason.INVALID_MESSAGES, "history[0]"),
        ),
        (
            {"instruction": "q", "output": "a", "history": {"q": "a"}},
            "Alpaca",
            (RowReason.INVALID_MESSAGES, "history"),
        ),
    ],
)
def test_a_row_that_does_not_fit_is_rejected_with_its_column(
    value: dict[str, Any], name: str, expected: tuple[RowReason, str]
) -> None:
    assert rejection(value, name) == expected


_ONLY_REASONING = "<think>why</think>\n"


@pytest.mark.parametrize(
    ("row", "format_name", "place"),
    [
        ({"conversations": [SHARED[0], {"from": "gpt", "value": _ONLY_REASONING}]}, "ShareGPT", "conversations[1].value"),
        ({"prompt": "q", "completion": _ONLY_REASONING}, "PromptCompletion", "completion"),
        ({"instruction": "q", "output": _ONLY_REASONING}, "Alpaca", "output"),
    ],
)  # fmt: skip
def test_an_answer_that_is_empty_after_stripping_is_rejected(
    row: dict[str, Any], format_name: str, place: str
) -> None:
    parse_row(row, format_name, "Keep")
    with pytest.raises(RowRejected) as caught:
        parse_row(row, format_name, "Strip")
    assert (caught.value.reason, caught.value.field) == (RowReason.EMPTY_ANSWER, place)


@pytest.mark.parametrize("reasoning", ["Keep", "Strip"])
@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"prompt": "q", "completion": ""}, "PromptCompletion"),
        ({"instruction": "q", "output": " \n"}, "Alpaca"),
    ],
)
def test_an_empty_answer_is_an_ordinary_turn(row: dict[str, Any], format_name: str, reasoning: Any) -> None:
    """A template renders it, and its stop token can be learned. The report warns about empty answers."""
    assert parse_row(row, format_name, reasoning).assistant_turns == [1]


@pytest.mark.parametrize(
    ("value", "name", "places"),
    [
        ({"turns": 1, "conversations": SHARED}, "ShareGPT", ["conversations[0].value", "conversations[1].value"]),
        ({"prompt": "q", "completion": "a", "system_prompt": "s"}, "PromptCompletion", ["system_prompt", "prompt", "completion"]),
        ({"Prompt": "q", "Completion": "a"}, "PromptCompletion", ["Prompt", "Completion"]),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, "Alpaca", [*["history[0]"] * 2, "instruction", "output"]),
        ({"data": {"messages": CHAT}}, "Messages", ["data.messages[0].content", "data.messages[1].content"]),
        ({"[]": CHAT}, "Messages", ["[0].content", "[1].content"]),
    ],
)  # fmt: skip
def test_a_conversation_knows_where_the_file_has_its_texts(
    value: dict[str, Any], name: str, places: list[str]
) -> None:
    conversation = parsed(value, name)
    assert [conversation.place_in_row(f"messages[{index}].content") for index in range(len(places))] == places
