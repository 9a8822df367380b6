from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.chat_template.encoding import Encoder
from tokenizers import AddedToken

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    pass

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "vocabulary", ["mistral v1", "mistral v2", "mistral v3", "tekken", "qwen", "llama 3", "byt5"]
)
def test_cutting_at_control_tokens_changes_no_id(tokenizers: RealTokenizers, vocabulary: str) -> None:
    """The ids equal those of the whole text for any position of the control tokens."""
    tokenizer = with_tokens(tokenizers.load(vocabulary))
    encoder = Encoder(tokenizer)
    texts = random_texts(400)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoder.cut_at([*_TOKENS, "</s>", "<s>"], texts[:5])
    assert encoder.encode(texts) == whole


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word"])
def test_texts_are_not_cut_at_tokens_that_absorb_neighbors(option: str) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), **{option: True})
    encoder = Encoder(tokenizer)
    texts = random_texts(200)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoder.cut_at(_TOKENS, [])
    assert encoder.encode(texts) == whole


def test_texts_are_not_cut_at_tokens_that_can_overlap() -> None:
    tokenizer = tiny_tokenizer()
    tokens = ("<|a|>", "<|a|><|b|>", "|>x")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    encoder = Encoder(tokenizer)
    texts = ["<|a|><|b|>x", "<|a|>x<|a|>", "x<|a|><|a|><|b|>"]
    encoder.cut_at(tokens, [])
    assert encoder.encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
