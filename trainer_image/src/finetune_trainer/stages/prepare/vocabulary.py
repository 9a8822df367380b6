"""Compares token ids with the rows of the model's embedding: an id without a row would end TRAIN on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.data.chat_template.template import ChatTemplate
    from finetune_trainer.data.dataset.token_use import TokenUse

_CONVERSATION = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
_REMEDY = "use the tokenizer files of this model, or a model whose embedding was enlarged for these tokens"


def require_template_tokens(template: ChatTemplate, rows: int) -> None:
    """Check the tokens that the chat template writes, before any row is proven; the embedding has `rows` rows.

    Raises StageError(InvalidModel) with the token.
    """
    try:
        text = template.render(_CONVERSATION, None, generation=False)
    except RowRejected:
        return  # the template wants another conversation; the rows will show its tokens
    largest = max(template.encode([text])[0], default=-1)
    if largest >= rows:
        raise StageError(
            Reason.INVALID_MODEL,
            f"every token that the chat template writes must have a row in the model's embedding of {rows} rows, found "
            f"{template.token_text(largest)!r} with the id {largest}; {_REMEDY}, or name another model.chatTemplate",
        )


def require_row_tokens(use: TokenUse, template: ChatTemplate, rows: int) -> None:
    """Check the tokens of all proven rows. Raises StageError(InvalidModel) with the token and its row."""
    if use.largest >= rows:
        raise StageError(
            Reason.INVALID_MODEL,
            f"every token of the dataset must have a row in the model's embedding of {rows} rows, found "
            f"{template.token_text(use.largest)!r} with the id {use.largest} in row {use.row}; {_REMEDY}",
        )


def largest_token(template: ChatTemplate, rows: int) -> int:
    """Return the tokenizer's largest added id, or `rows` if its vocabulary alone has an id without a row."""
    largest = max(template.added_tokens, default=-1)
    return rows if largest < rows and template.encoder.token(rows) is not None else largest
