"""Learns from sentinels what ends a turn, and cuts rendered text there.

A turn ends with the first token at which a server stops. A server stops at the end tokens of the generation config and
of the tokenizer. If the template writes none of these, its own last control token behind the answer is the end, and the
artifact must name it. If it writes no control token at all, the answer is left open, and an end token is appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.masking.alignment import shared_beginning
from finetune_trainer.data.rows.rejection import RowRejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.data.chat_template.template import ChatTemplate
    from finetune_trainer.data.masking.markup import Markup


@dataclass(frozen=True)
class Endings:
    """The ends of turns.

    `tokens` are the ids at which a turn ends and `texts` their text. `appended` goes after an answer, and
    `appended_to_call` after a tool call, if the template leaves it open. `next_header` is the header of the next turn that
    some templates write behind every conversation.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...]
    appended: str | None = None
    appended_to_call: str | None = None
    next_header: str = ""

    def cut(self, answer: str, after: int, *, call: bool = False) -> str | None:
        """Cut rendered text after the first end token at or after position `after`.

        If the template leaves the turn open, the end token is appended. Return None if there is no end.
        """
        answer = answer.removesuffix(self.next_header)
        ends = [position + len(text) for text in self.texts if (position := answer.find(text, after)) >= 0]
        if ends:
            return answer[: min(ends)]
        appended = self.appended_to_call if call else self.appended
        return None if appended is None else answer.rstrip() + appended


@dataclass(frozen=True)
class Surroundings:
    """The text around a canary's answer.

    `prompted` stands behind the question in the served prompt. `last` stands behind an answer that ends the conversation.
    `following` stands behind one that another message follows; it is None if the template rejects that.
    """

    prompted: str
    last: str
    following: str | None


def learn_endings(
    template: ChatTemplate,
    markup: Markup,
    answer: Surroundings,
    call: Surroundings | None,
    opener: str | None,
    eos_ids: Iterable[int],
) -> Endings | None:
    """Learn the ends from the text around a plain answer and around a tool call.

    `opener` is the first marker of a conversation. It begins a message, so it ends none. `eos_ids` are the end tokens of
    the generation config. Return None if nothing can end a turn.
    """
    configured = (token_id for token_id in (*eos_ids, template.eos_id) if token_id is not None)
    ends = {token_id for token_id in configured if template.token_text(token_id)}
    own = answer.last[: _header_start(markup, answer, opener)]
    behind = _behind(own, answer.following)
    appended = None
    if not _is_ended(template, markup, own, answer.following, ends):
        appended = _token_to_append(template, markup, behind, ends)
    appended_to_call = appended
    if call is not None:
        own_call = call.last[: _header_start(markup, call, opener)]
        if not _is_ended(template, markup, own_call, call.following, ends):
            behind_call = _behind(own_call, call.following)
            result = markup.first_special(behind_call)
            if result is not None and result != markup.first_special(behind):
                # The family ends a call with the token that opens the call's result.
                ends.add(result)
            appended_to_call = _token_to_append(template, markup, behind_call, ends)
    texts = tuple(sorted(template.token_text(token_id) or "" for token_id in ends))
    if not texts:
        return None
    return Endings(frozenset(ends), texts, appended, appended_to_call, answer.last[len(own) :])


def _is_ended(
    template: ChatTemplate, markup: Markup, own: str, following: str | None, ends: set[int]
) -> bool:
    """Return True if the template ends the turn itself; add its end token to `ends` if no other is written.

    `own` is the text behind the answer without the next header. A token that the template also writes before another
    message comes first: it always writes that one.
    """
    if any((template.token_text(token_id) or "") in own for token_id in ends):
        return True
    always = own if following is None else own[: shared_beginning(own, following)]
    token_id = markup.last_special(always)
    if token_id is None:
        token_id = markup.last_special(own)
    if token_id is None:
        return False
    ends.add(token_id)
    return True


def surroundings(
    template: ChatTemplate,
    question: list[dict[str, Any]],
    answer: dict[str, Any],
    word: str,
    following: dict[str, Any],
    tools: Any = None,
) -> Surroundings | None:
    """Render an answer whose last text is `word`, as the last message and before another one.

    Return None if the template rejects the answer or leaves out the word.
    """
    asked = str(question[-1]["content"])
    try:
        prompt = template.render(question, tools, generation=True)
        full = template.render([*question, answer], tools, generation=False)
    except RowRejected:
        return None
    if word not in full or asked not in full[: full.rindex(word)]:
        return None
    if asked not in prompt:
        return None
    place = full.rindex(word)
    try:
        longer = template.render([*question, answer, following], tools, generation=False)
    except RowRejected:
        longer = ""
    behind = longer[longer.rindex(word) + len(word) :] if word in longer else None
    next_word = str(following["content"])
    if behind is not None:
        behind = behind.partition(next_word)[0] if next_word in behind else None
    prompted = prompt[prompt.rindex(asked) + len(asked) :]
    return Surroundings(prompted, full[place + len(word) :], behind)


def _header_start(markup: Markup, around: Surroundings, opener: str | None) -> int:
    """Return the position in `around.last` at which the next turn's header begins; its length if none does.

    Some templates write the header of the assistant's next turn behind every conversation, with or without being asked
    for it. It differs from what stands before the next question, and the served prompt ends with it.
    """
    last, following = around.last, around.following
    markers = markup.find(last)
    first_opener = next((marker.start for marker in markers if marker.text == opener), len(last))
    if following is None or following.startswith(last):
        return first_opener
    common = last[: shared_beginning(last, following)]
    ends = [marker.end for marker in markers if marker.end <= len(common) and marker.text != opener]
    start = max([0, *ends, common.rfind("\n") + 1])
    header = last[start:]
    is_header = bool(header.strip()) and around.prompted.rstrip().endswith(header.rstrip())
    return min(start, first_opener) if is_header else first_opener


def _behind(own: str, following: str | None) -> str:
    """Return the text of the next message, which follows the answer's own text."""
    return "" if following is None else following[shared_beginning(own, following) :]


def _token_to_append(template: ChatTemplate, markup: Markup, behind: str, ends: set[int]) -> str | None:
    """Choose the token after an answer that the template leaves open.

    In some families, a turn ends with the first token of the next message. If the model is configured to stop at that
    token, it is chosen, else the tokenizer's end-of-sequence token, else any token at which servers stop.
    """
    token_id = markup.first_special(behind)
    if token_id is not None and token_id in ends:
        return template.token_text(token_id)
    if template.eos_token:
        return template.eos_token
    return next(filter(None, map(template.token_text, sorted(ends))), None)
