"""Counts how many rendered rows the masks accept with a template, and how many accepted rows are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.chat_templates import matrix
from tests.support.chat_templates.conversations import conversations
from tests.support.chat_templates.templates import cases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.data.masking.example import Example

    from tests.support.chat_templates.real_tokenizers import RealTokenizers
    from tests.support.chat_templates.shapes import Case

# A template that writes all its input must accept at least this share of the rows that it renders.
ACCEPTED_SHARE = 0.97
# Reasons for rejection that come from the template.
TEMPLATE_REASONS = {
    RowReason.TEMPLATE_REFUSED,
    RowReason.CONTENT_NOT_RENDERED,
    RowReason.MASK_UNPROVABLE,
}


@dataclass
class Acceptance:
    """What one template did with conversations.

    `rendered` counts the conversations that the template renders in full, and `accepted` those of them that the masks
    accept. `wrong` has the faults of accepted conversations, `rejected` the reasons of rendered ones that are rejected,
    and `differently_rendered` the conversations that transformers renders otherwise.
    """

    rendered: int = 0
    accepted: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    reasons: list[RowReason] = field(default_factory=list)
    differently_rendered: list[str] = field(default_factory=list)


def masker_for(tokenizers: RealTokenizers, case: Case) -> tuple[Any, Masker]:
    """Return the tokenizer of a case and its masker. Raises StageError if the template cannot be proven."""
    tokenizer = matrix.fit(tokenizers, case)
    template = ChatTemplate(tokenizer, arguments=case.arguments)
    return tokenizer, Masker(template, maximum_length=100_000, eos_ids=matrix.stop_ids(tokenizer, case))


def outcome(masker: Masker, row: dict[str, Any]) -> list[Example] | RowRejected:
    """Return the examples of one row, or the reason for its rejection."""
    (result,) = masker.examples([parse_conversation(row, "Keep")])
    return result


def examine(tokenizers: RealTokenizers, name: str, titles: Iterable[str]) -> Acceptance:
    """Mask the conversations with these titles and judge the outcome without the engine's code."""
    case = cases()[name]
    tokenizer, masker = masker_for(tokenizers, case)
    judge = matrix.Judge(tokenizer, case)
    found = Acceptance()
    for title in titles:
        sample = conversations()[title]
        messages = parse_conversation(sample.row, "Keep").messages
        if not _same_text(judge, masker.template, messages, sample.tools):
            found.differently_rendered.append(title)
        result = outcome(masker, sample.row)
        rendered = judge.renderable(messages, sample.tools)
        found.rendered += rendered
        if not isinstance(result, RowRejected):
            found.accepted += rendered
            if faults := judge.faults(messages, result, sample.tools):
                found.wrong[title] = faults
            continue
        found.reasons.append(result.reason)
        if rendered:
            found.rejected[title] = str(result)
    return found


def _same_text(
    judge: matrix.Judge, template: ChatTemplate, messages: list[dict[str, Any]], tools: Any
) -> bool:
    """Return True if the engine and transformers render the same text or both reject."""
    for generation in (True, False):
        try:
            wanted: str | None = judge.render(messages, tools, generation=generation)
        except matrix.RENDER_ERRORS:
            wanted = None
        try:
            found: str | None = template.render(messages, tools, generation=generation)
        except RowRejected:
            found = None
        if found != wanted:
            return False
    return True
