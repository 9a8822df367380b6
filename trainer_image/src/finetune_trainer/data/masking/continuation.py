"""Continues a served prompt as the rendered conversation does, with each reasoning tag written once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.masking.alignment import first_difference, text_behind

if TYPE_CHECKING:
    from finetune_trainer.data.masking.reasoning import PromptTail, ReasoningTags


def continuation(
    tags: ReasoningTags,
    prompt: str,
    full: str,
    *,
    end: str,
    reasoning: bool,
    tail: PromptTail | None = None,
) -> str | None:
    """Return the text that continues the served prompt as the rendered conversation does.

    The conversation may lack the reasoning tags at the prompt's end, which are `tail`. If they opened a block, the answer
    closes it first. `reasoning` is True if the answer has a trace, and `end` is the text that the template writes between
    a trace and an answer. Return None if prompt and conversation differ otherwise, or if no known tag closes the block.
    """
    rest = text_behind(prompt, full)
    tail = tail or tags.tail(prompt)
    if tail is None:
        return rest
    if rest is not None:
        return rest if tail.opened is None else _inside(tags, rest, tail, end=end, reasoning=reasoning)
    # An empty block that the prompt closes is one piece.
    for start in tail.starts[:1] if tail.opened is None else reversed(tail.starts):
        rest = text_behind(prompt[:start], full)
        if rest is None:
            continue
        if tail.opened is None:
            # A trace behind a closed block is ordinary text, and the caller writes it.
            return None if reasoning else tags.without_leading(rest, tail)
        closing = tags.closing_tag(tail.opened)
        if closing is None or (reasoning and closing not in rest):
            return None
        return _inside(tags, rest, tail, end=end, reasoning=reasoning)
    return None


def _inside(tags: ReasoningTags, rest: str, tail: PromptTail, *, end: str, reasoning: bool) -> str:
    """Return the rest of a conversation as the model must write it in the block that the prompt has opened.

    If the conversation leaves the block open, the model closes it before it answers.
    """
    rest = tags.without_leading(rest, tail)
    closing = None if tail.opened is None else tags.closing_tag(tail.opened)
    if reasoning or closing is None or closing in rest:
        return rest
    return _closing_text(closing, end) + rest.lstrip("\n")


def _closing_text(closing: str, end: str) -> str:
    """Return the closing tag with the white space that the template writes around it.

    `end` is the text that the template writes between a trace and an answer; it may hold more than the tag.
    """
    if closing not in end:
        return f"\n{closing}\n\n"
    before, _, after = end.partition(closing)
    return before + closing + after[: len(after) - len(after.lstrip())]


def difference(prompt: str, full: str) -> str:
    """Return a text for users that shows both texts around their first difference."""
    served, written = first_difference(prompt, full)
    return f"the prompt has {served!r} where the conversation has {written!r}"
