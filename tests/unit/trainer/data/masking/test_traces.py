from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.grammar import Grammar, learn_grammar
from tokenizers import AddedToken

from tests.support.tiny_models import tiny_tokenizer

_TURN = "<|im_start|>{{ m.role }}\n"
_END = "<|im_end|>\n{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"


def grammar(trace: str, prompt: str = "", *known: str, plain: str = "") -> Grammar:
    """Learn a template that writes `trace` around a trace and `plain` before an answer without one."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in known])
    source = (
        "{% for m in messages %}" + _TURN
        + ("{% if m.reasoning_content %}" + trace + "{% elif m.role == 'assistant' %}" + plain + "{% endif %}")
        + "{{ m.content }}" + _END + _PROMPT + prompt + "{% endif %}"
    )  # fmt: skip
    return learn_grammar(ChatTemplate(tokenizer, source))


def test_the_tags_around_a_trace_are_learned_without_their_names() -> None:
    found = grammar("<unused94>{{ m.reasoning_content }}<unused95>")
    assert (found.reasoning_prefix, found.reasoning_end) == ("<unused94>", "<unused95>")
    assert found.tags.opening == {"<unused94>"}
    assert found.tags.closing == {"<unused95>"}


@pytest.mark.parametrize(
    ("prompt", "plain", "prefix"),
    [
        ("<plan>\n", "", "\n</plan>\n\n"),
        ("<plan>\n", "<plan>\n</plan>", "</plan>"),
        ("<plan>\n\n</plan>\n\n", "", ""),
        ("<plan></plan>", "</plan>", ""),
    ],
)
def test_a_block_of_unknown_name_that_only_the_prompt_has_is_learned(
    prompt: str, plain: str, prefix: str
) -> None:
    assert grammar("", prompt, "<plan>", "</plan>", plain=plain).prefix == prefix


def test_a_prompt_that_opens_the_block_leaves_it_out_of_the_prefix() -> None:
    found = grammar(
        "<think>\n{{ m.reasoning_content }}\n</think>\n\n", "<think>\n", plain="<think>\n\n</think>\n\n"
    )
    assert (found.reasoning_prefix, found.reasoning_end) == ("", "\n</think>\n\n")
    assert not found.reasoning_is_plain_text
    assert found.prefix == "\n</think>\n\n"


@pytest.mark.parametrize(
    ("prompt", "plain"), [("", True), ("<think>\n</think>\n", True), ("<think>\n", False)]
)
def test_a_template_without_a_place_for_traces_writes_them_as_text(prompt: str, plain: Any) -> None:
    assert grammar("", prompt, "<think>", "</think>").reasoning_is_plain_text is plain
