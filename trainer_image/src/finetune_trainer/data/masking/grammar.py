"""Learns with canary conversations what a chat template writes around an assistant's answer.

No template is known by name here. Conversations of unmistakable words (sentinels) are rendered once per tokenizer,
template and arguments. The text around these words comes from the template itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.data.chat_template.template import ChatTemplate

DEFAULT_REASONING_PREFIX, DEFAULT_REASONING_END = "<think>\n", "\n</think>\n\n"
_MARKUP = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[[^\[\]\s]{1,40}\]|#{2,} ?[A-Za-z ]{2,30}:")
_REASONING_TAG = (
    r"<[^<>\s/]{0,24}(?:think|thought|reason)[^<>\s/]{0,24}>|\[[^\[\]\s/]{0,24}THINK[^\[\]\s/]{0,24}\]"
)
_OPEN_REASONING = re.compile(rf"(?P<tag>{_REASONING_TAG})(?P<space>\s*)\Z", re.IGNORECASE)
_CLOSED_REASONING = re.compile(
    r"</[^<>\s]*(?:think|thought|reason)[^<>\s]*>\s*\Z|\[/THINK\]\s*\Z", re.IGNORECASE
)


def sentinel(number: int) -> str:
    """Return a word that no template writes and no tokenizer treats in a special way."""
    return f"zqx{number:04d}vkj"


@dataclass(frozen=True)
class Grammar:
    """The text and tokens around an answer.

    `generation_prompt` is the text that the template adds to prompt an answer, empty if it cannot be determined.
    `stop_tokens` are the token ids that end a turn, and `stop_texts` is their text. `appended_stop` goes after an answer
    if the template writes none. `prefix` and `suffix` surround a plain answer after the served prompt; `prefix` is None
    if it is not known. `reasoning_prefix` and `reasoning_end` surround a reasoning trace if the template renders one.
    `trims` is True if the template strips answers. `headers` is markup that opens or closes a message.
    """

    stop_tokens: frozenset[int]
    stop_texts: tuple[str, ...]
    appended_stop: str | None
    prefix: str | None
    suffix: str
    reasoning_prefix: str | None
    reasoning_end: str
    reasoning_is_plain_text: bool
    generation_prompt: str
    trims: bool
    headers: frozenset[str]

    def cut(self, answer: str, after: int) -> str | None:
        """Cut rendered text after the first stop token at or after position `after`.

        If the template writes none, `appended_stop` is added. Return None if there is no such token.
        """
        ends = [
            position + len(text) for text in self.stop_texts if (position := answer.find(text, after)) >= 0
        ]
        if ends:
            return answer[: min(ends)]
        return None if self.appended_stop is None else answer.rstrip() + self.appended_stop


def opened_reasoning(prompt: str) -> str | None:
    """Return the tag, and the space after it, with which a served prompt opens the reasoning block."""
    match = _OPEN_REASONING.search(prompt, max(0, len(prompt) - 120))
    return None if match is None else match[0]


def closing_tag(opened: str) -> str:
    """Return the tag that closes the one in `opened`."""
    tag = opened.strip()
    for start, end in (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end")):
        if start in tag:
            return tag.replace(start, end)
    return tag[0] + "/" + tag[1:]


def learn_grammar(template: ChatTemplate, eos_ids: Iterable[int] = ()) -> Grammar:
    """Render the canary conversations and learn from them.

    `eos_ids` are the end tokens of the generation config. Raises StageError(ChatTemplateUnprovable) if the template
    cannot render a question and its answer or leaves one out, or if no token could end a turn.
    """
    user, answer, second_user = sentinel(1), sentinel(2), sentinel(3)
    question = [{"role": "user", "content": user}]
    try:
        prompt = template.render(question, None, generation=True)
        full = template.render([*question, {"role": "assistant", "content": answer}], None, generation=False)
    except RowRejected as error:
        raise _unprovable(f"it cannot render one question and its answer: {error.detail}") from error
    if user not in prompt or answer not in full or user in full[full.rindex(answer) :]:
        raise _unprovable("it leaves out the question or the answer of a conversation with one turn")
    after = full[full.rindex(answer) + len(answer) :]
    known = {token_id for token_id in eos_ids if template.token_text(token_id)}
    if template.eos_id is not None:
        known.add(template.eos_id)
    written = _first_added_token(template, after)
    appended = None
    if written is not None:
        known.add(written)
    elif not any(_text(template, token_id) in after for token_id in known):
        appended = _stop_text_to_append(template, question, answer, second_user, known)
    called = _tool_call_stop_token(template, question, known)
    if called is not None:
        known.add(called)
    stop_tokens = frozenset(known)
    texts = tuple(sorted(_text(template, token_id) for token_id in stop_tokens))
    if not texts:
        raise _unprovable("neither template nor tokenizer names a token that ends a turn")
    prefix = _prefix(template, question, prompt, full, answer)
    reasoning_prefix, reasoning_end = _reasoning(template, question, prompt)
    cut_at = [position + len(text) for text in texts if (position := after.find(text)) >= 0]
    suffix = after[: min(cut_at)] if cut_at else (appended or "")
    return Grammar(
        stop_tokens=stop_tokens,
        stop_texts=texts,
        appended_stop=appended,
        prefix=prefix,
        suffix=suffix,
        reasoning_prefix=reasoning_prefix,
        reasoning_end=reasoning_end,
        reasoning_is_plain_text=_reasoning_is_plain_text(template, question, prompt),
        generation_prompt=_generation_prompt(template, question, prompt),
        trims=_trims(template, question, answer),
        headers=_headers(template),
    )


def _unprovable(what: str) -> StageError:
    return StageError(
        Reason.CHAT_TEMPLATE_UNPROVABLE,
        f"the chat template must render every message and end each answer, but {what}; "
        "use the model's own template or name another one in model.chatTemplate",
    )


def _text(template: ChatTemplate, token_id: int) -> str:
    return template.token_text(token_id) or ""


def _first_added_token(template: ChatTemplate, text: str) -> int | None:
    found = [(position, -len(token), token_id) for token_id, token in template.added_tokens.items()
             if token and (position := text.find(token)) >= 0]  # fmt: skip
    return min(found)[2] if found else None


def _stop_text_to_append(
    template: ChatTemplate, question: list[dict[str, str]], answer: str, second_user: str, known: set[int]
) -> str | None:
    """Choose the token after an answer that the template leaves open.

    In some families, a turn ends with the first token of the next message. If the model is configured to stop at that
    token, it is chosen, else the tokenizer's end-of-sequence token.
    """
    history = [*question, {"role": "assistant", "content": answer}, {"role": "user", "content": second_user}]
    try:
        rendered = template.render(history, None, generation=False)
    except RowRejected:
        rendered = ""
    following = rendered[rendered.find(answer) + len(answer) :] if answer in rendered else ""
    token_id = _first_added_token(template, following)
    if token_id is not None and token_id in known:
        return _text(template, token_id)
    return template.eos_token


def _tool_call_stop_token(
    template: ChatTemplate, question: list[dict[str, str]], known: set[int]
) -> int | None:
    """Return the token that ends a tool call, if the family ends tool calls and answers differently."""
    word = sentinel(6)
    call = {
        "type": "function",
        "id": "canary001",
        "function": {"name": "canary", "arguments": {"word": word}},
    }
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        full = template.render([*question, message], None, generation=False)
    except RowRejected:
        return None
    tail = full[full.rindex(word) + len(word) :].rstrip() if word in full else ""
    if not tail or any(_text(template, token_id) in tail for token_id in known):
        return None
    endings = [token_id for token_id in template.special_ids if tail.endswith(_text(template, token_id))]
    return max(endings, key=lambda token_id: len(_text(template, token_id)), default=None)


def _prefix(
    template: ChatTemplate, question: list[dict[str, str]], prompt: str, full: str, answer: str
) -> str | None:
    """Return the text that the model writes between the served prompt and a plain answer."""
    before = full[: full.rindex(answer)]
    if before.startswith(prompt):
        return before[len(prompt) :]
    generation_prompt = _generation_prompt(template, question, prompt)
    opened = opened_reasoning(generation_prompt)
    if opened is not None:
        generation_prompt = generation_prompt.removesuffix(opened)
    if not generation_prompt or generation_prompt not in before:
        return None
    return before[before.rindex(generation_prompt) + len(generation_prompt) :]


def _reasoning(template: ChatTemplate, question: list[dict[str, str]], prompt: str) -> tuple[str | None, str]:
    """Return the text before and after a reasoning trace, if the template renders one."""
    trace, answer = sentinel(4), sentinel(5)
    candidates: list[dict[str, Any]] = [
        {"role": "assistant", "content": answer, "reasoning_content": trace},
        {"role": "assistant", "content": f"<think>\n{trace}\n</think>\n\n{answer}"},
    ]
    for message in candidates:
        try:
            full = template.render([*question, message], None, generation=False)
        except RowRejected:
            continue
        if trace not in full or answer not in full or full.index(trace) > full.rindex(answer):
            continue
        end = full[full.index(trace) + len(trace) : full.rindex(answer)]
        before = full[: full.index(trace)]
        if before.startswith(prompt):
            return before[len(prompt) :], end
        # The prompt already opens the block, or closes an empty one and a trace opens another.
        return opened_reasoning(before), end
    return None, DEFAULT_REASONING_END


def _reasoning_is_plain_text(template: ChatTemplate, question: list[dict[str, str]], prompt: str) -> bool:
    if opened_reasoning(prompt) is not None:
        return False
    if _CLOSED_REASONING.search(prompt) is not None:
        return True
    trace, answer = sentinel(7), sentinel(8)
    block = f"{DEFAULT_REASONING_PREFIX}{trace}{DEFAULT_REASONING_END}"
    following = {"role": "user", "content": sentinel(9)}
    as_field = {"role": "assistant", "content": answer, "reasoning_content": trace}
    inline = {"role": "assistant", "content": block + answer}
    try:
        if trace in template.render([*question, as_field], None, generation=False):
            return False
        return block in template.render([*question, inline, following], None, generation=True)
    except RowRejected:
        return False


def _generation_prompt(template: ChatTemplate, question: list[dict[str, str]], prompt: str) -> str:
    without = template.render(question, None, generation=False)
    return prompt[len(without) :] if prompt.startswith(without) else ""


def _trims(template: ChatTemplate, question: list[dict[str, str]], answer: str) -> bool:
    full = template.render(
        [*question, {"role": "assistant", "content": f"  {answer}  "}], None, generation=False
    )
    return f"  {answer}  " not in full


def _headers(template: ChatTemplate) -> frozenset[str]:
    """Return the markup that the template writes around messages of each role that it accepts."""
    words: set[str] = set()
    roles: list[Sequence[str]] = [("user", "assistant", "user", "assistant"), ("system", "user", "assistant")]
    for sequence in roles:
        messages = [{"role": role, "content": sentinel(10 + number)} for number, role in enumerate(sequence)]
        try:
            rendered = template.render(messages, None, generation=False)
        except RowRejected:
            continue  # the template may not support system messages; rows that have one are rejected with a reason
        # Only text next to a message counts: text further away may be prose of a default system prompt.
        for literal in re.split(r"zqx\d{4}vkj", rendered):
            words.update(_MARKUP.findall(literal[:80] + " " + literal[-80:]))
    return frozenset(word for word in words if "think" not in word.lower() and len(word) >= 4)
