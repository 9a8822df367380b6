"""A masker with the tiny tokenizer, and the outcome of masking a row."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowRejected

from tests.support.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MASKER = Masker(ChatTemplate(TOKENIZER), maximum_length=64)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    """Return a row of messages, each given as role and text."""
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def outcome(row: dict[str, Any], masker: Masker = MASKER) -> list[Example] | RowRejected:
    """Return the examples of a row, or its rejection."""
    try:
        (result,) = masker.examples([parse_conversation(row, "Keep")])
    except RowRejected as rejection:
        return rejection
    return result
