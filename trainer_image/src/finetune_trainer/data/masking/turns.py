"""Writes the text of one assistant turn: the served prompt, and the answer that the model must write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.conversations.conversation import Answer, Conversation, answer_of
from finetune_trainer.data.conversations.messages import REASONING_FIELDS
from finetune_trainer.data.masking.grammar import (
    DEFAULT_REASONING_PREFIX,
    Grammar,
    closing_tag,
    opened_reasoning,
    sentinel,
)
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

if TYPE_CHECKING:
    from finetune_trainer.data.chat_template.template import ChatTemplate

_REMEMBERED_SKELETONS = 4096


@dataclass(frozen=True)
class Turn:
    """One assistant turn: `prompt` is context; `answer` is learned and ends with a stop token."""

    prompt: str
    answer: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Skeleton:
    """The text that the template writes around the answer's parts in turns of one shape, without white space.

    `literals` is None if the rendered conversation does not begin with the served prompt. `left_out` holds the positions
    of messages whose words the template does not write into the prompt.
    """

    literals: tuple[str, ...] | None
    left_out: tuple[int, ...] = ()


class TurnWriter:
    """Writes turns for one template and remembers the conversation shapes that it has proven."""

    def __init__(self, template: ChatTemplate, grammar: Grammar) -> None:
        self._template = template
        self._grammar = grammar
        self._skeletons: dict[str, _Skeleton] = {}

    def turn(self, conversation: Conversation, index: int) -> Turn:
        """Write the turn of the assistant message at `index`.

        If the rendered conversation begins with the served prompt, the rest is the answer. A conversation of the same
        shape, made of sentinels, must show that this rest holds only the template's own text and the answer. If the
        template renders history differently than it prompts, the answer is built from the text that the canary
        conversations show around answers.

        Raises RowRejected with TemplateRefused, ContentNotRendered or MaskUnprovable.
        """
        messages, tools = conversation.messages, conversation.tools
        answer = answer_of(messages[index])
        if index == 0:
            raise RowRejected(
                RowReason.TEMPLATE_REFUSED,
                "messages[0]",
                "no message comes before this answer, so it is never served",
            )
        prompt = self._template.render(messages[:index], tools, generation=True)
        self._require_history(messages[:index], prompt)
        full = self._template.render(messages[: index + 1], tools, generation=False)
        skeleton = self._skeleton(messages[: index + 1], tools)
        for position in skeleton.left_out:
            raise _left_out(messages[position], position)
        continuation = self._continuation(prompt, full, answer)
        for written in [] if continuation is None else self._cuts(continuation, answer):
            if _matches(written, skeleton, answer):
                return Turn(prompt, written, tuple(answer.parts))
        if answer.tool_calls:
            names = [call["function"]["name"] for call in answer.tool_calls]
            if not all(name in full for name in names):
                raise RowRejected(
                    RowReason.CONTENT_NOT_RENDERED,
                    f"messages[{index}].tool_calls",
                    "the template leaves out this tool call",
                )
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                f"messages[{index}].tool_calls",
                "the template renders this tool call differently than it would be served",
            )
        text = answer.text.strip()
        if text not in full and not _escaped_in(text, full):
            raise _left_out(messages[index], index)
        rebuilt = self._rebuild(prompt, answer, f"messages[{index}]")
        if full.startswith(prompt) and not self._agrees(prompt, full[len(prompt) :], answer, rebuilt):
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                f"messages[{index}]",
                "the text that the template writes around or into this answer depends on the answer's words",
            )
        return Turn(prompt, rebuilt, tuple(answer.parts))

    def _agrees(self, prompt: str, rendered: str, answer: Answer, rebuilt: str) -> bool:
        """Return True if the template writes the rebuilt answer after the prompt, except for white space.

        If the template has no place for a trace, none is expected there.
        """
        reasoning = (answer.reasoning or "").strip()
        if reasoning and reasoning not in rendered:
            answer = Answer(answer.text, answer.text)
            rebuilt = self._rebuild(prompt, answer, "messages")
        wanted = "".join(rebuilt.split())
        return any("".join(written.split()) == wanted for written in self._cuts(rendered, answer))

    def _require_history(self, messages: list[dict[str, Any]], prompt: str) -> None:
        """Reject a row if the template leaves a part of it out: the model would be trained without that part."""
        for index, message in enumerate(messages):
            content = message.get("content") or ""
            if message["role"] == "assistant":
                content = answer_of(message).text.rpartition("</think>")[2]
            text = content.strip()
            if text and text not in prompt and not _escaped_in(text, prompt):
                raise _left_out(message, index)
            for call in message.get("tool_calls") or []:
                if call["function"]["name"] not in prompt:
                    raise RowRejected(
                        RowReason.CONTENT_NOT_RENDERED,
                        f"messages[{index}].tool_calls",
                        "the template leaves out this tool call",
                    )

    def _cuts(self, text: str, answer: Answer) -> list[str]:
        """Return the ways to cut the text at the end of the turn; none if a part of the answer is missing.

        A part that repeats words of the template may be found too early or too late. The end is therefore searched
        after its first and after its last occurrence.
        """
        first = last = 0
        for part in answer.parts:
            position = text.find(part, first)
            if position < 0:
                return []
            first = position + len(part)
            last = text.rindex(part) + len(part)
        for call in answer.tool_calls:
            position = text.rfind(call["function"]["name"])
            if position < 0 or not all(
                _escaped_in(value, text) for value in _strings(call["function"]["arguments"])
            ):
                return []
            first = last = max(last, position)
        cuts = [self._grammar.cut(text, after) for after in dict.fromkeys((first, last))]
        return [cut for cut in cuts if cut is not None]

    def _skeleton(self, messages: list[dict[str, Any]], tools: Any) -> _Skeleton:
        key = json.dumps([[_shape(message) for message in messages], tools], sort_keys=True)
        found = self._skeletons.get(key)
        if found is None:
            if len(self._skeletons) >= _REMEMBERED_SKELETONS:
                self._skeletons.clear()
            found = self._skeletons[key] = self._learn_skeleton(messages, tools)
        return found

    def _learn_skeleton(self, messages: list[dict[str, Any]], tools: Any) -> _Skeleton:
        """Render a conversation of the same shape made of sentinels and examine its last answer."""
        words = [sentinel(100 + 2 * number) for number in range(len(messages))]
        traces = [sentinel(101 + 2 * number) for number in range(len(messages))]
        masked = [_masked(*item) for item in zip(messages, words, traces, strict=True)]
        try:
            prompt = self._template.render(masked[:-1], tools, generation=True)
            full = self._template.render(masked, tools, generation=False)
        except RowRejected as error:
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                "messages",
                f"the template accepts these words but not others in their place: {error.detail}",
            ) from error
        left_out = tuple(
            position
            for position, word in enumerate(words[:-1])
            if word in str(masked[position].get("content")) and word not in prompt
        )
        answer = answer_of(masked[-1])
        continuation = self._continuation(prompt, full, answer)
        if continuation is None:
            return _Skeleton(None, left_out)
        cuts = self._cuts(continuation, answer)
        foreign = words[:-1] + traces[:-1]
        if not cuts or any(word in cuts[0] for word in foreign):
            return _Skeleton(None, left_out)
        return _Skeleton(_literals(cuts[0], answer.parts), left_out)

    def _continuation(self, prompt: str, full: str, answer: Answer) -> str | None:
        """Return the text after the served prompt in the rendered conversation; None if that begins differently.

        A prompt may open a reasoning block. The rendered conversation may write the block's white space differently. It
        may also leave out the block if there is no trace; then the model closes the block first.
        """
        if full.startswith(prompt):
            return full[len(prompt) :]
        opened = opened_reasoning(prompt)
        if opened is None:
            return None
        space = opened[len(opened.rstrip()) :]
        before = prompt.removesuffix(space)
        if full.startswith(before):
            return full[len(before) :].removeprefix(space)
        header = prompt.removesuffix(opened)
        if answer.reasoning is None and full.startswith(header):
            return self._close(opened) + full[len(header) :].lstrip("\n")
        return None

    def _close(self, opened: str) -> str:
        """Return the text that ends the reasoning block that a prompt opened with `opened`."""
        closing = closing_tag(opened)
        return self._grammar.reasoning_end if closing in self._grammar.reasoning_end else f"\n{closing}\n\n"

    def _rebuild(self, prompt: str, answer: Answer, place: str) -> str:
        """Build the answer from the text that the template writes around answers."""
        grammar = self._grammar
        text = answer.text.strip() if grammar.trims else answer.text
        opened = opened_reasoning(prompt)
        if opened is not None:
            return self._after_opened_reasoning(prompt, opened, answer, text)
        if grammar.prefix is None or not prompt.endswith(grammar.generation_prompt):
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                place,
                "the template renders this turn differently than it prompts",
            )
        if answer.reasoning is None:
            return grammar.prefix + text + grammar.suffix
        if grammar.reasoning_prefix is not None:
            plain = grammar.reasoning_is_plain_text
            if plain and grammar.reasoning_prefix != grammar.prefix + DEFAULT_REASONING_PREFIX:
                raise RowRejected(
                    RowReason.MASK_UNPROVABLE,
                    place,
                    "the text that the template writes before an answer depends on the answer's words",
                )
            reasoning = answer.reasoning.strip()
            return (
                grammar.reasoning_prefix
                + reasoning
                + grammar.reasoning_end
                + text.lstrip("\n")
                + grammar.suffix
            )
        if answer.inline and "think" not in grammar.prefix:
            content = answer.content.strip() if grammar.trims else answer.content
            return grammar.prefix + content + grammar.suffix
        raise RowRejected(
            RowReason.CONTENT_NOT_RENDERED,
            f"{place}.reasoning_content",
            "the template has no place for reasoning; dataset.reasoning: Strip removes it",
        )

    def _after_opened_reasoning(self, prompt: str, opened: str, answer: Answer, text: str) -> str:
        """Build the answer for a served prompt that has already opened the reasoning block."""
        grammar = self._grammar
        if answer.inline:
            body = answer.content.lstrip().removeprefix("<think>")
            return (body.lstrip("\n") if prompt.endswith("\n") else body) + grammar.suffix
        if answer.reasoning is None and closing_tag(opened) in answer.text:
            return text + grammar.suffix
        return (answer.reasoning or "").strip() + self._close(opened) + text.lstrip("\n") + grammar.suffix


def _shape(message: dict[str, Any]) -> list[Any]:
    """Return everything about a message that a template may branch on, except its words."""
    answer = answer_of(message) if message["role"] == "assistant" else None
    return [
        message["role"],
        bool((message.get("content") or "").strip()),
        sorted(message),
        None
        if answer is None
        else [
            answer.inline,
            bool((answer.reasoning or "").strip()),
            bool(answer.text.strip()),
            "</think>" in answer.text,
        ],
        message.get("tool_calls"),
        [message.get(key) for key in ("name", "tool_call_id")],
    ]


def _masked(message: dict[str, Any], word: str, trace: str) -> dict[str, Any]:
    """Replace the words of a message by sentinels and keep its shape."""
    masked = dict(message)
    content = message.get("content") or ""
    if message["role"] == "assistant":
        answer = answer_of(message)
        if answer.inline:
            text = word if answer.text.strip() else ""
            trace = trace if (answer.reasoning or "").strip() else ""
            masked["content"] = f"<think>\n{trace}\n</think>\n\n{text}"
            return masked
        for name in REASONING_FIELDS:
            if masked.get(name):
                masked[name] = trace
    if content.strip():
        masked["content"] = word
    return masked


def _literals(written: str, parts: list[str]) -> tuple[str, ...] | None:
    """Return the text around `parts` without white space; None if a part is missing."""
    literals = []
    position = 0
    for part in parts:
        found = written.find(part, position)
        if found < 0:
            return None
        literals.append("".join(written[position:found].split()))
        position = found + len(part)
    literals.append("".join(written[position:].split()))
    return tuple(literals)


def _matches(written: str, skeleton: _Skeleton, answer: Answer) -> bool:
    """Return True if the text is that of the skeleton around exactly the parts of this answer."""
    if skeleton.literals is None or len(skeleton.literals) != len(answer.parts) + 1:
        return False
    if _literals(written, answer.parts) == skeleton.literals:
        return True
    # A part that repeats words of the template is found too early. Then the whole text must agree.
    pieces = [skeleton.literals[0]]
    for part, literal in zip(answer.parts, skeleton.literals[1:], strict=True):
        pieces.extend(("".join(part.split()), literal))
    return "".join(pieces) == "".join(written.split()) and all(part in written for part in answer.parts)


def _left_out(message: dict[str, Any], position: int) -> RowRejected:
    return RowRejected(
        RowReason.CONTENT_NOT_RENDERED,
        f"messages[{position}].content",
        f"the template leaves out the text of this {message['role']} message",
    )


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _escaped_in(text: str, rendered: str) -> bool:
    """Return True if `rendered` contains `text` unchanged or escaped as in a JSON string."""
    return any(
        form in rendered
        for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
    )
