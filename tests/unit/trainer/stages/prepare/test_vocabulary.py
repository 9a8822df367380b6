from __future__ import annotations

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.dataset.token_use import TokenUse
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.vocabulary import (
    largest_token,
    require_row_tokens,
    require_template_tokens,
)

from tests.support.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    """Return ChatML for a tokenizer that got one token more, without a row for it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    return ChatTemplate(tokenizer)


def rows_of(template: ChatTemplate) -> int:
    return max(template.added_tokens)


def test_a_token_of_the_template_without_a_row_is_named(template: ChatTemplate) -> None:
    source = template.source().replace("<|im_end|>", "<|extra|>")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    other = ChatTemplate(tokenizer, source)
    require_template_tokens(other, rows_of(template) + 1)
    with pytest.raises(StageError, match=r"found '<\|extra\|>' with the id") as caught:
        require_template_tokens(other, rows_of(template))
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_token_that_the_template_does_not_write_needs_no_row(template: ChatTemplate) -> None:
    require_template_tokens(template, rows_of(template))


def test_a_template_that_rejects_the_probe_is_left_to_the_rows() -> None:
    source = "{{ raise_exception('only tools') }}"
    require_template_tokens(ChatTemplate(tiny_tokenizer(), source), 0)


def test_a_token_of_a_row_without_a_row_in_the_embedding_is_named(template: ChatTemplate) -> None:
    rows = rows_of(template)
    require_row_tokens(TokenUse(rows - 1, 1, (2,)), template, rows)
    with pytest.raises(StageError, match=r"'<\|extra\|>' with the id \d+ in row 17") as caught:
        require_row_tokens(TokenUse(rows, 17, (2,)), template, rows)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_the_largest_token_is_an_added_one_or_the_first_without_a_row(template: ChatTemplate) -> None:
    rows = rows_of(template)
    assert largest_token(template, rows) == rows
    assert largest_token(template, rows + 1) == rows
    assert largest_token(ChatTemplate(tiny_tokenizer()), 20) == 20
