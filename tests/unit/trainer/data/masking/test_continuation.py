from __future__ import annotations

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.continuation import continuation, difference
from finetune_trainer.data.masking.markup import Markup
from finetune_trainer.data.masking.reasoning import DEFAULT_END, ReasoningTags
from tokenizers import AddedToken

from tests.support.tiny_models import tiny_tokenizer


def tags() -> ReasoningTags:
    tokenizer = tiny_tokenizer()
    known = ("<think>", "</think>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in known])
    return ReasoningTags(Markup(ChatTemplate(tokenizer)))


def continued(prompt: str, full: str, *, reasoning: bool = False, end: str = DEFAULT_END) -> str | None:
    return continuation(tags(), prompt, full, end=end, reasoning=reasoning)


@pytest.mark.parametrize(
    ("prompt", "full", "wanted"),
    [
        ("A:", "A:yes", "yes"),
        ("A:\n", "A: yes", "yes"),
        ("A:<think>", "A:</think>yes", "</think>yes"),
        ("A:<think>\n", "A:<think>\n</think>\n\nyes", "</think>\n\nyes"),
        ("A:<think>\n", "A:yes", "\n</think>\n\nyes"),
        ("A:<think>\n", "A:<think>\nyes", "\n</think>\n\nyes"),
        ("A:<think>\n\n</think>\n\n", "A:yes", "yes"),
        ("A:<think></think>", "A:<think>\n\n</think>yes", "yes"),
        ("A:<think></think>", "A:</think>yes", "yes"),
        ("A:</think>", "A:yes", "yes"),
        ("A:<think>", "A:<think><think></think>yes", "</think>yes"),
        ("A:", "B:yes", None),
        ("A:<think>", "B:yes", None),
        ("A:<plan>", "A:yes", None),
    ],
)
def test_each_reasoning_tag_is_written_once(prompt: str, full: str, wanted: str | None) -> None:
    assert continued(prompt, full) == wanted


@pytest.mark.parametrize(
    ("prompt", "full", "wanted"),
    [
        ("A:<think>", "A:<think>why</think>yes", "why</think>yes"),
        ("A:<think>", "A:why</think>yes", "why</think>yes"),
        ("A:<think>", "A:yes", None),
        ("A:<think></think>", "A:<think>why</think>yes", None),
    ],
)
def test_a_trace_is_written_inside_the_block_that_the_prompt_opens(
    prompt: str, full: str, wanted: str | None
) -> None:
    assert continued(prompt, full, reasoning=True) == wanted


def test_the_closing_tag_has_the_white_space_of_the_template() -> None:
    assert continued("A:<think>", "A:yes", end="</think>\n") == "</think>\nyes"
    assert continued("A:<think>", "A:<answer>yes", end="\n</think>\n<answer>") == "\n</think>\n<answer>yes"


def test_a_difference_is_shown_with_both_texts() -> None:
    assert difference("A: x", "B: y") == "the prompt has 'A: x' where the conversation has 'B: y'"
