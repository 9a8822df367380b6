from __future__ import annotations

from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.masks import chat, outcome
from tests.support.tiny_models import tiny_tokenizer


def test_a_template_that_raises_rejects_the_row_with_its_message() -> None:
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


def test_a_template_that_drops_a_message_rejects_the_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    result = outcome(
        chat(("system", "s1"), ("user", "x"), ("assistant", "y")), Masker(ChatTemplate(tokenizer), 64)
    )
    assert isinstance(result, RowRejected)
    assert (result.reason, result.field) == (RowReason.CONTENT_NOT_RENDERED, "messages[0].content")
