from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.escaping import MARK, require_plain, split_mentions, without_marks
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.masks import chat
from tests.support.tiny_models import CHATML, tiny_tokenizer

_ROW = chat(
    ("system", "Never write <|im_end|> yourself."),
    ("user", "What does <|im_start|>system mean? <|im_end|><|im_end|>"),
    ("assistant", "<|im_start|> opens a turn, and <|im_end|> ends it."),
)


def masked(masker: Masker, row: dict[str, Any]) -> list[Example] | RowRejected:
    (outcome,) = masker.examples([parse_conversation(row, "Keep")])
    return outcome


def require_escaped(tokenizer: Any, row: dict[str, Any]) -> None:
    masker = Masker(ChatTemplate(tokenizer), 4096, control_tokens="Escape")
    outcome = masked(masker, row)
    assert isinstance(outcome, list), outcome
    (example,) = outcome
    assert example.escaped
    plain = masked(masker, chat(("system", "s"), ("user", "q"), ("assistant", "a")))
    assert isinstance(plain, list)
    for token in ("<|im_start|>", "<|im_end|>"):
        token_id = tokenizer.convert_tokens_to_ids(token)
        assert example.input_ids.count(token_id) == plain[0].input_ids.count(token_id)
    learned = tokenizer.decode([label for label in example.labels if label != -100])
    assert learned.strip() == row["messages"][-1]["content"] + "<|im_end|>"
    text = tokenizer.decode(example.input_ids)
    assert all(message["content"] in text for message in row["messages"])


def test_a_mention_is_learned_as_text_and_never_becomes_the_token() -> None:
    require_escaped(tiny_tokenizer(), _ROW)


@pytest.mark.parametrize("vocabulary", ["mistral v1", "mistral v3", "tekken", "qwen"])
def test_every_kind_of_vocabulary_writes_mentions_as_text(
    tokenizers: RealTokenizers, vocabulary: str
) -> None:
    tokenizer = tokenizers.load(vocabulary)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    )
    tokenizer.chat_template = CHATML
    require_escaped(tokenizer, _ROW)


def test_a_row_without_mentions_has_the_same_ids_as_before() -> None:
    row = chat(("user", "q"), ("assistant", "a"))
    template = ChatTemplate(tiny_tokenizer())
    strict, loose = (masked(Masker(template, 64, control_tokens=mode), row) for mode in ("Reject", "Escape"))
    assert strict == loose


def test_mentions_are_rejected_by_default() -> None:
    outcome = masked(Masker(ChatTemplate(tiny_tokenizer()), 4096), _ROW)
    assert isinstance(outcome, RowRejected)
    assert outcome.reason is RowReason.CONTROL_TOKEN_IN_CONTENT


def test_headers_of_words_cannot_be_escaped() -> None:
    source = (
        "{% for m in messages %}{{ '### ' + m.role + ':\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
    )
    masker = Masker(ChatTemplate(tiny_tokenizer(), source), 4096, control_tokens="Escape")
    outcome = masked(masker, chat(("user", "### assistant: yes"), ("assistant", "no")))
    assert isinstance(outcome, RowRejected)
    assert outcome.reason is RowReason.CONTROL_TOKEN_IN_CONTENT


def test_mentions_are_split_anywhere_in_a_value() -> None:
    def find(text: str) -> str | None:
        return next((token for token in ("<a>", "[B]") if token in text), None)

    value = {"x": ["<a><a>", 1, None], "y": "[B]"}
    found = split_mentions(value, find, {"<a>"})
    assert found == {"x": [f"<{MARK}a><{MARK}a>", 1, None], "y": "[B]"}
    assert without_marks(found["x"][0]) == "<a><a>"


def test_an_id_that_no_whole_token_explains_is_rejected() -> None:
    require_plain([1, 5], "<a> and <" + MARK + "a>", {"<a>": 5})
    with pytest.raises(RowRejected, match="would become"):
        require_plain([5, 5], "<a> and <" + MARK + "a>", {"<a>": 5})


@pytest.mark.parametrize("mode", ["Reject", "Escape"])
def test_text_with_the_mark_itself_is_rejected_and_not_changed(mode: Any) -> None:
    masker = Masker(ChatTemplate(tiny_tokenizer()), 4096, control_tokens=mode)
    outcome = masked(masker, chat(("user", f"a{MARK}b"), ("assistant", "c")))
    assert isinstance(outcome, RowRejected)
    assert outcome.reason is RowReason.CONTROL_TOKEN_IN_CONTENT
