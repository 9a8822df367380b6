from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.conversation import parse_conversation
from finetune_trainer.data.example import Example
from finetune_trainer.data.masking import Masker
from finetune_trainer.data.rows import RowReason, RowRefused
from finetune_trainer.data.template import ChatTemplate, load_tokenizer
from finetune_trainer.errors import Reason, StageError

from tests.trainer.prepare import matrix
from tests.trainer.prepare.real_tokenizers import RealTokenizers

if TYPE_CHECKING:
    from pathlib import Path

# Templates that take content as a list of parts only: they belong to models that see pictures.
_PICTURES = {"smolvlm", "idefics3", "llava_next"}
_VOCABULARIES = {
    "mistral": "mistral v3",
    "llama2": "mistral v1",
    "zephyr": "mistral v2",
    "vicuna": "mistral v1",
    "alpaca": "mistral v2",
    "llama3": "llama 3",
    "gemma4": "tekken",
}
# The template itself does not write these parts; refusing them is right.
_MAY_BE_LEFT_OUT = {"tools", "reasoning field", "system", "system multi"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> RealTokenizers:
    return RealTokenizers(tmp_path_factory.mktemp("tokenizers"))


def masker_for(tokenizers: RealTokenizers, name: str) -> tuple[Any, Masker]:
    source = matrix.sources()[name]
    vocabulary = next((found for prefix, found in _VOCABULARIES.items() if name.startswith(prefix)), "qwen")
    tokenizer = matrix.fit_tokenizer(tokenizers.load(vocabulary), name, source)
    return tokenizer, Masker(ChatTemplate(tokenizer), maximum_length=100_000)


def outcome(masker: Masker, messages: list[dict[str, Any]]) -> list[Example] | RowRefused:
    (result,) = masker.examples([parse_conversation({"messages": messages}, "Keep")])
    return result


@cache
def names() -> list[str]:
    return sorted(set(matrix.sources()) - _PICTURES)


@pytest.mark.parametrize("name", names())
def test_every_conversation_a_template_renders_is_learned_exactly(
    tokenizers: RealTokenizers, name: str
) -> None:
    """None accepted wrong; refused only where the template itself refuses or leaves something out."""
    tokenizer, masker = masker_for(tokenizers, name)
    refused: Counter[str] = Counter()
    for case, messages in matrix.conversations().items():
        result = outcome(masker, messages)
        if isinstance(result, RowRefused):
            allowed = {RowReason.TEMPLATE_REFUSED}
            if case in _MAY_BE_LEFT_OUT:
                allowed.add(RowReason.CONTENT_NOT_RENDERED)
            assert result.reason in allowed, f"{case}: {result}"
            refused[case] += 1
        else:
            assert matrix.judge(tokenizer, messages, result) == [], case
    assert refused.keys() <= _MAY_BE_LEFT_OUT


@pytest.mark.parametrize("name", sorted(_PICTURES))
def test_a_template_that_renders_no_text_is_unprovable(tokenizers: RealTokenizers, name: str) -> None:
    with pytest.raises(StageError) as caught:
        masker_for(tokenizers, name)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNPROVABLE


def test_a_mistral_system_prompt_and_two_turns_learn_exactly_the_answers_and_their_ends(
    tokenizers: RealTokenizers,
) -> None:
    """The template moves the system prompt to the last user turn: each turn becomes an example of its own."""
    tokenizer, masker = masker_for(tokenizers, "mistral_v03")
    examples = outcome(masker, matrix.conversations()["system multi"])
    assert not isinstance(examples, RowRefused)
    learned = [tokenizer.decode([label for label in example.labels if label != -100]) for example in examples]
    assert [text.strip() for text in learned] == ["Say ARONE now.</s>", "Say ARTWO.</s>"]
    assert all("SYONE" in tokenizer.decode(example.input_ids) for example in examples)


def test_turns_are_folded_into_one_sequence_where_they_are_token_identical(
    tokenizers: RealTokenizers,
) -> None:
    _, masker = masker_for(tokenizers, "chatml")
    examples = outcome(masker, matrix.conversations()["multi"])
    assert not isinstance(examples, RowRefused)
    assert len(examples) == 1


def test_the_real_models_own_template_is_learned(real_model: Path) -> None:
    tokenizer = load_tokenizer(real_model)
    masker = Masker(ChatTemplate(tokenizer), maximum_length=8192)
    for case, messages in matrix.conversations().items():
        result = outcome(masker, messages)
        if isinstance(result, RowRefused):
            assert case == "tools", f"{case}: {result}"
        else:
            assert matrix.judge(tokenizer, messages, result) == [], case
