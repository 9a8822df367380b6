"""Texts cut at control tokens, tokenizers without a fast backend, and templates that write a date."""

from __future__ import annotations

import datetime
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.chat_template.encoding import Encoder
from finetune_trainer.data.chat_template.render_date import pin_render_date
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.errors import Reason, StageError
from tokenizers import AddedToken

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_TOKENS = ("<|im_start|>", "<|im_end|>", "<|x|>")
_WORDS = (
    "Hello",
    " ",
    "\n",
    "  ",
    "world",
    "<|",
    "im_end",
    "é",
    "你好",
    "</s>",
    "<s>",
    "'s",
    "12",
    "▁",
    "\t",
    *_TOKENS,
)


def random_texts(count: int) -> list[str]:
    """Return texts of words, white space and control tokens in any order."""
    source = random.Random(11)  # noqa: S311 -- texts for a test
    return ["".join(source.choices(_WORDS, k=source.randint(1, 24))) for _ in range(count)]


def with_tokens(tokenizer: Any, **options: bool) -> Any:
    added = [AddedToken(token, special=True, normalized=False, **options) for token in _TOKENS]
    tokenizer.add_tokens(added)
    return tokenizer


@pytest.mark.parametrize(
    "vocabulary", ["mistral v1", "mistral v2", "mistral v3", "tekken", "qwen", "llama 3", "byt5"]
)
def test_cutting_at_control_tokens_changes_no_id(tokenizers: RealTokenizers, vocabulary: str) -> None:
    """The same ids as the tokenizer gives for the whole text, wherever the control tokens stand in it."""
    tokenizer = with_tokens(tokenizers.load(vocabulary))
    encoder = Encoder(tokenizer)
    texts = random_texts(400)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoder.cut_at([*_TOKENS, "</s>", "<s>"], texts[:5])
    assert encoder.encode(texts) == whole


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_look_at_their_neighbours_are_not_cut_at(option: str) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), **{option: True})
    encoder = Encoder(tokenizer)
    texts = random_texts(200)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoder.cut_at(_TOKENS, [])
    assert encoder.encode(texts) == whole


def test_tokens_that_can_overlap_are_not_cut_at() -> None:
    tokenizer = tiny_tokenizer()
    tokens = ("<|a|>", "<|a|><|b|>", "|>x")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    encoder = Encoder(tokenizer)
    texts = ["<|a|><|b|>x", "<|a|>x<|a|>", "x<|a|><|a|><|b|>"]
    encoder.cut_at(tokens, [])
    assert encoder.encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_an_encoder_and_a_template_are_the_same_in_another_process(tokenizers: RealTokenizers) -> None:
    tokenizer = tokenizers.load("mistral v3")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    copy = pickle.loads(pickle.dumps(template))  # noqa: S301 -- written on the same line
    messages = [{"role": "user", "content": "Hello"}]
    text = template.render(messages, None, generation=True)
    assert copy.render(messages, None, generation=True) == text
    assert copy.encode([text]) == template.encode([text])
    assert copy.decode(copy.encode([text])[0]) == template.decode(template.encode([text])[0])


_DATED = "{% for m in messages %}{{ strftime_now('%d %b %Y') + ': ' + m.content + eos_token }}{% endfor %}"


def test_a_date_in_the_prompt_stays_that_of_the_first_rendering(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    yesterday = ChatTemplate(
        tiny_tokenizer(), _DATED, render_date=datetime.datetime(2026, 3, 1, 23, 59, tzinfo=datetime.UTC)
    )
    text = pin_render_date(yesterday, tmp_path).render(messages, None, generation=False)
    assert text.startswith("01 Mar 2026: Hello")
    today = ChatTemplate(
        tiny_tokenizer(), _DATED, render_date=datetime.datetime(2026, 3, 2, 0, 1, tzinfo=datetime.UTC)
    )
    assert pin_render_date(today, tmp_path).render(messages, None, generation=False) == text


def test_a_template_without_a_date_leaves_no_trace_of_one(tmp_path: Path) -> None:
    template = ChatTemplate(tiny_tokenizer())
    assert pin_render_date(template, tmp_path) is template
    assert list(tmp_path.iterdir()) == []


def test_the_present_is_the_date_where_no_other_is_known() -> None:
    template = ChatTemplate(
        tiny_tokenizer(), "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    now = datetime.datetime.now().astimezone()
    text = template.render([{"role": "user", "content": "Hello"}], None, generation=False)
    assert text in {f"{year}Hello" for year in (now.year, now.year - 1)}


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_an_argument_that_rendering_itself_passes_is_refused(name: str) -> None:
    with pytest.raises(StageError, match=name) as caught:
        ChatTemplate(tiny_tokenizer(), arguments={name: 1})
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNPROVABLE


@pytest.mark.parametrize("source", ["{% for m in %}", "{{ x | nosuchfilter }}", "{% endif %}"])
def test_a_template_that_does_not_compile_is_refused(source: str) -> None:
    with pytest.raises(StageError) as caught:
        ChatTemplate(tiny_tokenizer(), source)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNPROVABLE
