from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.dataset.counts import REMEDIES
from finetune_trainer.data.dataset.split import conversation_digest, sample_key
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.reader import parse_line, read_rows
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = tiny_tokenizer()
MASKER = Masker(ChatTemplate(TOKENIZER), maximum_length=64)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def outcome(row: dict[str, Any], masker: Masker = MASKER) -> list[Example] | RowRejected:
    try:
        (result,) = masker.examples([parse_conversation(row, "Keep")])
    except RowRejected as rejection:
        return rejection
    return result


def reason(row: Any) -> RowReason | None:
    result = outcome(row)
    return result.reason if isinstance(result, RowRejected) else None


def test_lines_keep_their_numbers_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": 2}\r\n{"c": 3}')
    assert [(row.number, row.value) for row in read_rows([path])] == [
        (1, {"a": 1}),
        (4, {"b": 2}),
        (5, {"c": 3}),
    ]


@pytest.mark.parametrize(
    ("line", "expected", "place"),
    [
        (b'{"messages": [}', RowReason.INVALID_JSON, "column 15"),
        (b'{"a": "\xff"}', RowReason.INVALID_ENCODING, "byte 8"),
        (b"[1, 2]", RowReason.NOT_AN_OBJECT, "line"),
        (b"null", RowReason.NOT_AN_OBJECT, "line"),
        (b"[" * 100_000, RowReason.INVALID_JSON, "line"),
    ],
)
def test_a_line_that_is_no_object_has_its_reason_and_place(
    line: bytes, expected: RowReason, place: str
) -> None:
    with pytest.raises(RowRejected) as caught:
        parse_line(line)
    assert (caught.value.reason, caught.value.field) == (expected, place)


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


def test_a_template_that_raises_refuses_the_row_in_its_own_words() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + tokenizer.chat_template
    )
    result = outcome(
        chat(("system", "s"), ("user", "x"), ("assistant", "y")), Masker(ChatTemplate(tokenizer), 64)
    )
    assert isinstance(result, RowRejected)
    assert (result.reason, result.detail) == (RowReason.TEMPLATE_REFUSED, "no system here")


def test_a_template_that_drops_a_message_refuses_the_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    result = outcome(
        chat(("system", "s1"), ("user", "x"), ("assistant", "y")), Masker(ChatTemplate(tokenizer), 64)
    )
    assert isinstance(result, RowRejected)
    assert (result.reason, result.field) == (RowReason.CONTENT_NOT_RENDERED, "messages[0].content")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, Reason.CHAT_TEMPLATE_MISSING),
        ("hello", Reason.CHAT_TEMPLATE_UNPROVABLE),
        ("{% for", Reason.CHAT_TEMPLATE_UNPROVABLE),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            Reason.CHAT_TEMPLATE_UNPROVABLE,
        ),
    ],
)
def test_a_template_that_proves_nothing_is_refused_before_the_first_row(
    template: str | None, expected: Reason
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(StageError) as caught:
        Masker(ChatTemplate(tokenizer), 64)
    assert caught.value.reason is expected


def test_whole_earlier_turns_are_dropped_to_keep_to_the_maximum_length() -> None:
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


def test_tool_call_arguments_given_as_text_become_an_object() -> None:
    call = {"function": {"name": "f", "arguments": json.dumps({"a": 1})}}
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]}
    (parsed,) = parse_conversation(row, "Keep").messages[1]["tool_calls"]
    assert parsed["function"]["arguments"] == {"a": 1}


def test_the_lot_depends_on_content_seed_and_what_is_learned() -> None:
    row = chat(("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w"))
    digest = conversation_digest(parse_conversation(row, "Keep"))
    assert digest == conversation_digest(parse_conversation(json.loads(json.dumps(row)), "Keep"))
    assert sample_key(digest, seed=1) == sample_key(digest, seed=1) != sample_key(digest, seed=2)
    row["messages"][1]["weight"] = 0
    assert conversation_digest(parse_conversation(row, "Keep")) != digest


def test_every_row_reason_has_a_remedy() -> None:
    assert REMEDIES.keys() == set(RowReason)


_CONTENT = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(turns=st.lists(st.tuples(_CONTENT, _CONTENT), min_size=1, max_size=3), system=st.booleans())
def test_any_conversation_is_learned_exactly_or_refused_with_a_reason(
    turns: list[tuple[str, str]], *, system: bool
) -> None:
    """The labels of an accepted conversation decode to the answers and their ends, and to nothing else."""
    messages = [("system", "be kind")] if system else []
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    result = outcome(chat(*messages), Masker(ChatTemplate(TOKENIZER), 4096))
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


def test_a_refusal_is_the_same_after_its_way_between_processes() -> None:
    rejection = RowRejected(RowReason.TOO_LONG, "messages[1]", "found \u00e9")
    copied = pickle.loads(pickle.dumps(rejection))  # noqa: S301 -- made on the line above
    assert (copied.reason, copied.field, copied.detail) == (
        rejection.reason,
        rejection.field,
        rejection.detail,
    )
