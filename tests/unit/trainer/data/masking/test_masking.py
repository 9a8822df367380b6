from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.masks import MASKER, TOKENIZER, chat, outcome
from tests.support.tiny_models import tiny_tokenizer

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def rejection(*items: Any, **columns: Any) -> RowRejected:
    with pytest.raises(RowRejected) as caught:
        parse_conversation({"messages": list(items), **columns}, "Keep")
    return caught.value


def learned(masker: Masker, row: dict[str, Any]) -> list[str]:
    (outcome,) = masker.examples([parse_conversation(row, "Keep")])
    assert isinstance(outcome, list)

    def text(example: Example) -> str:
        return masker.template.decode([label for label in example.labels if label != -100])

    return [text(example) for example in outcome]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_an_answer_excluded_from_learning_is_context(flag: dict[str, Any]) -> None:
    """Only the other answers have labels, and the messages end with the last of them."""
    masker = Masker(ChatTemplate(tiny_tokenizer()), 256)
    first, second = {"role": "assistant", "content": "bad"}, {"role": "assistant", "content": "good"}
    for flagged, answers in (([{**first, **flag}, second], ["good"]), ([first, {**second, **flag}], ["bad"])):
        row = {"messages": [USER, flagged[0], {**USER, **flag}, flagged[1]]}
        conversation = parse_conversation(row, "Keep")
        assert not any({"weight", "train"} & message.keys() for message in conversation.messages)
        assert learned(masker, row) == [f"{answer}<|im_end|>" for answer in answers]
    assert rejection(USER, {**first, **flag}).reason is RowReason.NO_ASSISTANT_TURN


def reason(row: Any) -> RowReason | None:
    result = outcome(row)
    return result.reason if isinstance(result, RowRejected) else None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, RowReason.INVALID_MESSAGES),
        ({"messages": []}, RowReason.INVALID_MESSAGES),
        ({"messages": ["hello"]}, RowReason.INVALID_MESSAGES),
        (chat(("narrator", "x"), ("assistant", "y")), RowReason.INVALID_MESSAGES),
        ({"messages": [{"role": "user", "content": 5}]}, RowReason.INVALID_MESSAGES),
        (chat(("user", "half \ud83d"), ("assistant", "y")), RowReason.INVALID_MESSAGES),
        (chat(("user", "x")), RowReason.NO_ASSISTANT_TURN),
        (chat(("user", "x"), ("assistant", "  \n")), None),
        (chat(("user", "x"), ("assistant", "")), None),
        (chat(("user", "x<|im_end|>"), ("assistant", "y")), RowReason.CONTROL_TOKEN_IN_CONTENT),
        (chat(("user", "x"), ("assistant", "y<|im_start|>system")), RowReason.CONTROL_TOKEN_IN_CONTENT),
        (chat(("user", "x" * 200), ("assistant", "y")), RowReason.TOO_LONG),
        (chat(("user", "x"), ("assistant", "y")), None),
    ],
)
def test_each_fault_of_a_row_has_its_reason(row: dict[str, Any], expected: RowReason | None) -> None:
    assert reason(row) is expected


def test_whole_earlier_turns_are_dropped_to_keep_the_maximum_length() -> None:
    turns = [("system", "be kind")]
    for number in range(6):
        turns += [("user", f"what is {number}"), ("assistant", f"it is {number}")]
    examples = outcome(chat(*turns))
    assert isinstance(examples, list)
    learned = []
    for example in examples:
        assert len(example.input_ids) <= 64
        text = MASKER.template.decode(example.input_ids)
        assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n")
        learned.append(MASKER.template.decode([label for label in example.labels if label != -100]))
    assert "".join(learned) == "".join(f"it is {number}<|im_end|>" for number in range(6))


_LONG = Masker(ChatTemplate(TOKENIZER), 4096)
_CONTENT = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(turns=st.lists(st.tuples(_CONTENT, _CONTENT), min_size=1, max_size=3), system=st.booleans())
def test_any_conversation_is_learned_exactly_or_rejected_with_a_reason(
    turns: list[tuple[str, str]], *, system: bool
) -> None:
    """The labels of an accepted conversation decode to exactly the answers and their stop tokens."""
    messages = [("system", "be kind")] if system else []
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    result = outcome(chat(*messages), _LONG)
    if isinstance(result, RowRejected):
        assert result.reason is RowReason.CONTROL_TOKEN_IN_CONTENT
        return
    learned = "".join(
        MASKER.template.decode([label for label in example.labels if label != -100]) for example in result
    )
    assert learned == "".join(f"{answer}<|im_end|>" for _, answer in turns)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls", "function", "name", "arguments", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(st.fixed_dictionaries({"messages": _JSON | st.lists(_JSON, max_size=3)}, optional={"tools": _JSON}))
def test_any_json_ends_in_examples_or_a_reason(row: dict[str, Any]) -> None:
    result = outcome(row)
    assert isinstance(result, RowRejected | list)


def test_a_row_that_is_rejected_in_the_middle_leaves_its_neighbors_alone() -> None:
    """The template writes an end token between a trace and its answer, so the first turn is rejected by its ids."""
    source = TOKENIZER.chat_template.replace(
        "message.content",
        "(message.reasoning_content + '<|im_end|>' if message.reasoning_content else '') + message.content",
    )
    masker = Masker(ChatTemplate(TOKENIZER, source), 4096)
    broken = [
        USER,
        {**ANSWER, "reasoning_content": "why"},
        {**USER, "content": "more"},
        {**ANSWER, "content": "b"},
    ]
    good = [{**USER, "content": "other"}, {**ANSWER, "content": "right"}]
    rows = [parse_conversation({"messages": messages}, "Keep") for messages in (broken, good, broken, good)]
    outcomes = masker.examples(rows)
    assert [isinstance(outcome, RowRejected) for outcome in outcomes] == [True, False, True, False]
    assert outcomes[1] == outcomes[3] == masker.examples(rows[1:2])[0]
