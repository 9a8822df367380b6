from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.grammar import Grammar, closing_tag, learn_grammar, opened_reasoning
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.errors import Reason, StageError

from tests.support.tiny_models import CHATML, tiny_tokenizer


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
def test_an_unprovable_template_fails_before_the_first_row(template: str | None, expected: Reason) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(StageError) as caught:
        Masker(ChatTemplate(tokenizer), 64)
    assert caught.value.reason is expected


def grammar(template: str, **arguments: Any) -> Grammar:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return learn_grammar(ChatTemplate(tokenizer, arguments=arguments))


_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_the_text_around_an_answer_is_learned_from_chatml() -> None:
    found = grammar(CHATML)
    assert (found.prefix, found.suffix, found.generation_prompt) == (
        "",
        "<|im_end|>",
        "<|im_start|>assistant\n",
    )
    assert found.stop_texts == ("<|im_end|>",)
    assert found.appended_stop is None
    assert not found.trims
    assert found.headers == {"<|im_start|>", "<|im_end|>"}


def test_an_answer_that_the_template_leaves_open_gets_the_end_of_sequence() -> None:
    found = grammar("{% for m in messages %}" + _TURN + "\n{% endfor %}" + _PROMPT)
    assert found.appended_stop == "<|im_end|>"
    assert found.cut("an answer  ", 0) == "an answer<|im_end|>"


def test_text_is_cut_after_the_first_stop_token_from_a_position() -> None:
    found = grammar(CHATML)
    text = "a<|im_end|>b<|im_end|>"
    assert found.cut(text, 0) == "a<|im_end|>"
    assert found.cut(text, 2) == text
    assert found.cut("no end", 0) is None


def test_a_template_that_trims_answers_is_recognized() -> None:
    assert grammar(CHATML.replace("message.content", "message.content | trim")).trims


def test_text_before_an_answer_is_its_prefix() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}final: {% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
    )
    assert grammar(source).prefix == "final: "


def test_reasoning_that_a_template_renders_has_its_surroundings() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
        "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
    )
    found = grammar(source)
    assert (found.reasoning_prefix, found.reasoning_end) == ("<think>", "</think>")
    assert not found.reasoning_is_plain_text


def test_a_template_that_ignores_reasoning_writes_it_as_plain_text() -> None:
    assert grammar(CHATML).reasoning_is_plain_text


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("assistant\n<think>\n", "<think>\n"),
        ("assistant\n<think>", "<think>"),
        ("[THINK] ", "[THINK] "),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("<think>\n</think>\n", None),
        ("a <think> about b", None),
    ],
)
def test_a_prompt_that_opens_the_reasoning_block_shows_its_tag(prompt: str, opened: str | None) -> None:
    assert opened_reasoning(prompt) == opened


@pytest.mark.parametrize(
    ("tag", "closing"),
    [
        ("<think>\n", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ],
)
def test_each_opening_tag_has_its_closing_tag(tag: str, closing: str) -> None:
    assert closing_tag(tag) == closing
