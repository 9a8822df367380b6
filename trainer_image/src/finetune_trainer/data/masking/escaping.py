"""Lets content mention control tokens as plain text, so that no mention becomes the token.

Each mention is split by a mark before the template renders it. The text on both sides of a mark is tokenized separately,
so the tokenizer never sees the whole token. A server must do the same: it must tokenize content without control tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.rejection import RowReason, RowRejected

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from finetune_trainer.data.chat_template.template import ChatTemplate

# Two characters for private use: no template writes them, and content that has them is rejected.
MARK = "\ue0f7\ue0f8"
_MOST_MENTIONS = 10_000


def without_marks(text: str) -> str:
    """Return text as the model sees it."""
    return text.replace(MARK, "")


def split_mentions(value: Any, find: Callable[[str], str | None], tokens: Collection[str]) -> Any:
    """Return a value of JSON in which every mention that `find` returns is split by a mark.

    Only `tokens` of the vocabulary can be split. Other markup stays, and the caller finds it again.
    """
    if isinstance(value, str):
        return _split_text(value, find, tokens)
    if isinstance(value, dict):
        return {key: split_mentions(item, find, tokens) for key, item in value.items()}
    if isinstance(value, list):
        return [split_mentions(item, find, tokens) for item in value]
    return value


def encode_marked(template: ChatTemplate, text: str, anchor: str) -> list[int]:
    """Return the token ids of rendered text, with the pieces between marks encoded separately.

    Some tokenizers write a space before a text's first word. Such a piece is encoded behind the control token `anchor`.
    Raises RowRejected(MaskUnprovable) if the ids of a piece cannot be told.
    """
    first, *rest = text.split(MARK)
    (ids,) = template.encode([first])
    for piece in rest:
        wanted = template.decode(ids) + piece
        alone, head, anchored = template.encode([piece, anchor, anchor + piece])
        behind = anchored[len(head) :] if anchored[: len(head)] == head else alone
        found = next((part for part in (alone, behind) if template.decode([*ids, *part]) == wanted), None)
        if found is None:
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                "messages",
                "the tokenizer cannot write a control token as plain text",
            )
        ids = [*ids, *found]
    return ids


def require_plain(ids: Sequence[int], text: str, control: dict[str, int]) -> None:
    """Raise RowRejected(MaskUnprovable) if a mention became a control token.

    Only the control tokens that stand whole in the marked text may be among the ids.
    """
    for token, token_id in control.items():
        if ids.count(token_id) > text.count(token):
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                "messages",
                f"the mention of {token!r} would become the control token",
            )


def _split_text(text: str, find: Callable[[str], str | None], tokens: Collection[str]) -> str:
    for _ in range(_MOST_MENTIONS):
        token = find(text)
        if token is None or token not in tokens or len(token) == 1:
            return text
        text = text.replace(token, token[0] + MARK + token[1:])
    return text
