from __future__ import annotations

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.markup import Markup
from finetune_trainer.data.masking.reasoning import ReasoningTags, partners
from tokenizers import AddedToken

from tests.support.tiny_models import tiny_tokenizer


def tags(*known: str, opening: str = "", closing: str = "", structural: str = "") -> ReasoningTags:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in known])
    return ReasoningTags(
        Markup(ChatTemplate(tokenizer)),
        frozenset(opening.split()),
        frozenset(closing.split()),
        frozenset(structural.split()),
    )


@pytest.mark.parametrize(
    ("tag", "closing"),
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|channel>", "<channel|>"),
        ("<|think|>", "<|/think|>"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ],
)
def test_the_spellings_of_a_closing_tag(tag: str, closing: str) -> None:
    assert closing in partners(tag)


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("assistant\n<think>\n", "<think>\n"),
        ("assistant\n<think>", "<think>"),
        ("[THINK] ", "[THINK] "),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("model\n<|channel>thought\n", "<|channel>thought\n"),
        ("\u25c1think\u25b7", "\u25c1think\u25b7"),
    ],
)
def test_a_prompt_opens_a_reasoning_block_in_any_spelling(prompt: str, opened: str) -> None:
    tail = tags().tail(prompt)
    assert tail is not None
    assert tail.opened == opened


@pytest.mark.parametrize(
    "prompt",
    [
        "<think>\n</think>\n",
        "<think></think>",
        "</think>",
        "<|START_THINKING|><|END_THINKING|>",
        "<|channel>thought\n<channel|>",
        "<think>\n<think_budget>There is no budget, so I answer.</think_budget>\n</think>",
    ],
)
def test_a_prompt_closes_the_block_that_it_opens(prompt: str) -> None:
    tail = tags().tail(prompt)
    assert tail is not None
    assert tail.opened is None


@pytest.mark.parametrize("prompt", ["a <think> about b", "<|im_start|>assistant\n", "think", "", "[/INST]"])
def test_a_prompt_without_a_tag_at_its_end_has_no_tail(prompt: str) -> None:
    assert tags().tail(prompt) is None


def test_learned_tags_need_no_telling_name() -> None:
    learned = tags(opening="<unused94>", closing="<unused95>")
    tail = learned.tail("model\n<unused94>")
    assert tail is not None
    assert tail.opened == "<unused94>"
    assert learned.closing_tag("<unused94>") == "<unused95>"
    assert tags().tail("model\n<unused94>") is None


def test_a_tag_around_other_messages_is_never_a_reasoning_tag() -> None:
    assert tags(structural="<|thinker|>").tail("<|thinker|>") is None


def test_behind_the_header_every_other_marker_counts() -> None:
    prompt = "assistant\n<plan>"
    tail = tags().tail(prompt, len("assistant\n"))
    assert tail is not None
    assert tail.opened == "<plan>"
    assert tags(structural="<plan>").tail(prompt, len("assistant\n")) is None


def test_only_a_closing_tag_that_template_or_vocabulary_knows_is_written() -> None:
    assert tags("</plan>").closing_tag("<plan>\n") == "</plan>"
    assert tags().closing_tag("<plan>\n") is None


@pytest.mark.parametrize(
    ("prompt", "text", "rest"),
    [
        ("<think>", "<think>\nwhy</think>yes", "why</think>yes"),
        ("<think>", "</think>yes", "</think>yes"),
        ("<think></think>", "\n</think>\n\nyes", "yes"),
        ("<|channel>thought\n<channel|>", "<channel|>yes", "yes"),
        ("<think>", "yes <think>", "yes <think>"),
    ],
)
def test_a_tag_that_the_prompt_has_written_is_not_repeated(prompt: str, text: str, rest: str) -> None:
    tail = tags().tail(prompt)
    assert tail is not None
    assert tags().without_leading(text, tail) == rest
