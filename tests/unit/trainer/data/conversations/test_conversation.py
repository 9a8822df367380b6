from __future__ import annotations

from finetune_trainer.data.conversations.conversation import parse_conversation

from tests.support.masks import TOKENIZER, chat, outcome

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_strip_removes_reasoning_and_keep_learns_it() -> None:
    row = chat(("user", "x"), ("assistant", "<think>\nwhy\n</think>\n\nbecause"))
    row["messages"][1]["reasoning_content"] = "field"
    stripped = parse_conversation(row, "Strip").messages[1]
    assert stripped == {"role": "assistant", "content": "because"}
    del row["messages"][1]["reasoning_content"]
    examples = outcome(row)
    assert isinstance(examples, list)
    labels = [label for label in examples[0].labels if label != -100]
    assert TOKENIZER.decode(labels) == "<think>\nwhy\n</think>\n\nbecause<|im_end|>"


def test_an_answer_that_only_closes_its_reasoning_is_stripped_too() -> None:
    row = chat(("user", "x"), ("assistant", "why\n</think>\n\nbecause"))
    assert parse_conversation(row, "Strip").messages[1]["content"] == "because"


def test_a_system_column_shifts_the_positions_of_excluded_answers() -> None:
    row = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER], "system": "s"}
    conversation = parse_conversation(row, "Keep")
    assert conversation.untrained == {2}
    assert conversation.assistant_turns == [4]


def test_places_of_messages_become_places_of_the_row() -> None:
    row = {
        "messages": [{"from": "human", "value": "q"}, {"role": "assistant", "content": "a", "thinking": "t"}],
        "column": "turns",
    }
    conversation = parse_conversation(row, "Keep")
    wanted = {
        "messages": "turns",
        "messages[0]": "turns[0]",
        "messages[0].content": "turns[0].value",
        "messages[1].reasoning_content": "turns[1].thinking",
        "messages[0].reasoning_content": "turns[0].value",
        "messages[1].tool_calls": "turns[1].tool_calls",
        "messages[7].content": "messages[7].content",
        "tools": "tools",
    }
    assert {place: conversation.place_in_row(place) for place in wanted} == wanted
    assert conversation == parse_conversation({**row, "column": "other"}, "Keep")
