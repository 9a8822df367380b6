"""Writes the text of one assistant turn: the served prompt, and the answer that the model must write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.conversations.conversation import Answer, Conversation, answer_of
from finetune_trainer.data.masking.continuation import difference
from finetune_trainer.data.masking.grammar import Grammar
from finetune_trainer.data.masking.reasoning import DEFAULT_PREFIX
from finetune_trainer.data.masking.skeletons import (
    Skeleton,
    literals_of,
    mask_conversation,
    matches,
    shape_of,
)
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.data.chat_template.template import ChatTemplate

_REMEMBERED_SKELETONS = 4096
_MOST_OCCURRENCES = 16


@dataclass(frozen=True)
class Turn:
    """One assistant turn: `prompt` is context; `answer` is learned and ends with a stop token."""

    prompt: str
    answer: str
    parts: tuple[str, ...]


class TurnWriter:
    """Writes turns for one template and remembers the conversation shapes that it has proven."""

    def __init__(self, template: ChatTemplate, grammar: Grammar) -> None:
        self._template = template
        self._grammar = grammar
        self._skeletons: dict[str, Skeleton] = {}

    def turn(self, conversation: Conversation, index: int) -> Turn:
        """Write the turn of the assistant message at `index`.

        If the rendered conversation begins with the served prompt, the rest is the answer. A conversation of the same
        shape, made of sentinels, must show that this rest holds only the template's own text and the answer. If the
        template renders history differently than it prompts, the answer is built from the text that the canary
        conversations show around answers.

        Raises RowRejected with TemplateRefused, ContentNotRendered or MaskUnprovable.
        """
        if index == 0:
            raise RowRejected(
                RowReason.TEMPLATE_REFUSED,
                "messages[0]",
                "no message comes before this answer, so it is never served",
            )
        tools = conversation.tools
        messages = [*conversation.messages[:index], self._spoken(conversation.messages[index])]
        answer = answer_of(messages[index])
        prompt = self._template.render(messages[:index], tools, generation=True)
        self._require_history(messages[:index], prompt)
        full = self._template.render(messages, tools, generation=False)
        skeleton = self._skeleton(messages, tools)
        for position in skeleton.left_out:
            raise _left_out(messages[position], position)
        for position in skeleton.left_out_calls:
            raise _left_out_call(position)
        continuation = self._continuation(prompt, full, answer)
        for candidate in [continuation, *self._behind_question(prompt, full, messages, answer)]:
            for written in [] if candidate is None else self._cuts(candidate, answer):
                if matches(written, skeleton, answer):
                    return Turn(prompt, written, tuple(answer.parts))
        return Turn(prompt, self._rebuilt(prompt, full, continuation, messages), tuple(answer.parts))

    def _spoken(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return an answer in the form in which the template writes a trace once.

        Some templates write their own block around a trace in a field, and leave a trace in the content as it is.
        """
        answer = answer_of(message)
        if not answer.inline or not self._grammar.inline_is_doubled:
            return message
        return {
            **message,
            "content": answer.text.strip("\n"),
            "reasoning_content": (answer.reasoning or "").strip(),
        }

    def _rebuilt(
        self, prompt: str, full: str, continuation: str | None, messages: list[dict[str, Any]]
    ) -> str:
        """Return the last answer, built from the text around answers, if the template writes it nowhere differently."""
        index = len(messages) - 1
        answer = answer_of(messages[index])
        if answer.tool_calls:
            raise self._unprovable_call(prompt, full, answer, index)
        text = answer.text.strip()
        if text not in full and not _escaped_in(text, full):
            raise _left_out(messages[index], index)
        rebuilt = self._rebuild(prompt, full, answer, f"messages[{index}]")
        # If other white space follows the header, the conversation may have another header.
        same_header = full.startswith(prompt) or not full.startswith(prompt.rstrip())
        if continuation is None or not same_header:
            return rebuilt
        if not self._agrees(prompt, full, continuation, answer, rebuilt):
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                f"messages[{index}]",
                "the text that the template writes around or into this answer depends on the answer's words",
            )
        return rebuilt

    def _agrees(self, prompt: str, full: str, rendered: str, answer: Answer, rebuilt: str) -> bool:
        """Return True if the template writes the rebuilt answer after the prompt, except for white space.

        If the template has no place for a trace, none is expected there.
        """
        reasoning = (answer.reasoning or "").strip()
        if reasoning and reasoning not in rendered:
            answer = Answer(answer.text, answer.text)
            rebuilt = self._rebuild(prompt, full, answer, "messages")
            rendered = self._continuation(prompt, full, answer) or rendered
        # A template may write an empty block before the block in the content.
        wanted = self._without_tags(rebuilt)
        return any(self._without_tags(written) == wanted for written in self._cuts(rendered, answer))

    def _without_tags(self, written: str) -> str:
        """Return text without white space and without the reasoning tags at its beginning."""
        tags = self._grammar.tags
        squeezed = "".join(written.split())
        for marker in tags.markup.find(squeezed[:200]):
            if not squeezed.startswith(marker.text) or not tags.is_reasoning(marker.text):
                break
            squeezed = squeezed.removeprefix(marker.text)
        return squeezed

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
                    raise _left_out_call(index)

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
        called = bool(answer.tool_calls)
        endings = self._grammar.endings
        cuts = [endings.cut(text, after, call=called) for after in dict.fromkeys((first, last))]
        return [cut for cut in cuts if cut is not None]

    def _skeleton(self, messages: list[dict[str, Any]], tools: Any) -> Skeleton:
        key = shape_of(messages, tools)
        found = self._skeletons.get(key)
        if found is None:
            if len(self._skeletons) >= _REMEMBERED_SKELETONS:
                self._skeletons.clear()
            found = self._skeletons[key] = self._learn_skeleton(messages, tools)
        return found

    def _learn_skeleton(self, messages: list[dict[str, Any]], tools: Any) -> Skeleton:
        """Render a conversation of the same shape made of sentinels and examine its last answer."""
        masked = mask_conversation(messages, calls=False)
        try:
            prompt = self._template.render(masked.messages[:-1], tools, generation=True)
            full = self._template.render(masked.messages, tools, generation=False)
        except RowRejected as error:
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                "messages",
                f"the template accepts these words but not others in their place: {error.detail}",
            ) from error
        left_out, left_out_calls = masked.left_out(prompt), self._left_out_calls(messages, tools)
        answer = answer_of(masked.messages[-1])
        continuation = self._continuation(prompt, full, answer)
        for candidate in [continuation, *self._behind_question(prompt, full, masked.messages, answer)]:
            cuts = [] if candidate is None else self._cuts(candidate, answer)
            if cuts and not any(word in cuts[0] for word in masked.foreign):
                literals = literals_of(cuts[0], answer.parts)
                if literals is None or not self._grammar.opens_twice(" ".join(literals)):
                    return Skeleton(literals, left_out, left_out_calls)
        return Skeleton(None, left_out, left_out_calls)

    def _left_out_calls(self, messages: list[dict[str, Any]], tools: Any) -> tuple[int, ...]:
        """Return the positions of earlier messages whose tool calls the template leaves out.

        The names of functions also occur among the tools, so sentinels take their place.
        """
        masked = mask_conversation(messages, calls=True)
        if not any(masked.calls):
            return ()
        try:
            return masked.left_out_calls(self._template.render(masked.messages[:-1], tools, generation=True))
        except RowRejected:
            return ()  # the template looks names up among the tools

    def _behind_question(
        self, prompt: str, full: str, messages: list[dict[str, Any]], answer: Answer
    ) -> Iterator[str]:
        """Yield the ways to continue the prompt if only the text before the answered message differs.

        Some templates rewrite earlier messages, or move the system prompt, when an answer follows.
        """
        asked = str(messages[-2].get("content") or "").strip()
        if not asked or asked not in prompt or full.startswith(prompt):
            return
        served = prompt[prompt.rindex(asked) + len(asked) :]
        end = len(full)
        for _ in range(_MOST_OCCURRENCES):
            place = full.rfind(asked, 0, end)
            if place < 0:
                return
            end = place + len(asked) - 1
            found = self._continuation(served, full[place + len(asked) :], answer)
            if found is not None:
                yield found
            header = self._grammar.generation_prompt
            if header and prompt.endswith(header) and header in full[place:]:
                # The template writes more than the header before the prompt's end.
                yield full[full.index(header, place) + len(header) :]

    def _continuation(self, prompt: str, full: str, answer: Answer) -> str | None:
        reasoning = bool((answer.reasoning or "").strip())
        return self._grammar.continuation(prompt, full, reasoning=reasoning)

    def _rebuild(self, prompt: str, full: str, answer: Answer, place: str) -> str:
        """Build the answer from the text that the template writes around answers."""
        grammar = self._grammar
        text = answer.text.strip() if grammar.trims else answer.text
        tail = grammar.tags.tail(prompt)
        if tail is not None and tail.opened is not None:
            return self._after_opened_reasoning(prompt, full, tail.opened, answer, text, place)
        same = prompt.endswith(grammar.generation_prompt)
        prefix = grammar.prefix
        if tail is not None and not same:
            # Only this prompt closes a block, so nothing stands between it and the answer.
            prefix, same = "", True
        if prefix is None or not same:
            raise self._differs(prompt, full, place)
        if answer.reasoning is None:
            return prefix + text + grammar.suffix
        if grammar.reasoning_prefix is not None:
            plain = grammar.reasoning_is_plain_text and tail is None
            if plain and grammar.reasoning_prefix not in {DEFAULT_PREFIX, prefix + DEFAULT_PREFIX}:
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
        if answer.inline and "think" not in prefix:
            content = answer.content.strip() if grammar.trims else answer.content
            return prefix + content + grammar.suffix
        raise RowRejected(
            RowReason.CONTENT_NOT_RENDERED,
            f"{place}.reasoning_content",
            "the template has no place for reasoning; dataset.reasoning: Strip removes it",
        )

    def _after_opened_reasoning(
        self, prompt: str, full: str, opened: str, answer: Answer, text: str, place: str
    ) -> str:
        """Build the answer for a served prompt that has already opened the reasoning block."""
        grammar = self._grammar
        closing = grammar.tags.closing_tag(opened)
        if answer.inline and closing == "</think>":
            body = answer.content.lstrip().removeprefix("<think>")
            return (body.lstrip("\n") if prompt.endswith("\n") else body) + grammar.suffix
        if answer.reasoning is None and closing is not None and closing in answer.text:
            return text + grammar.suffix
        if (
            answer.reasoning is None
            and grammar.prefix is not None
            and prompt.endswith(grammar.generation_prompt)
        ):
            return grammar.prefix + text + grammar.suffix
        end = grammar.close(opened)
        if end is None:
            raise self._differs(prompt, full, place)
        return (answer.reasoning or "").strip() + end + text.lstrip("\n") + grammar.suffix

    def _unprovable_call(self, prompt: str, full: str, answer: Answer, index: int) -> RowRejected:
        if not all(call["function"]["name"] in full for call in answer.tool_calls):
            return _left_out_call(index)
        return RowRejected(
            RowReason.MASK_UNPROVABLE,
            f"messages[{index}].tool_calls",
            "the template renders this tool call differently than it would be served: "
            f"{difference(prompt, full)}; {self._template.remedy}",
        )

    def _differs(self, prompt: str, full: str, place: str) -> RowRejected:
        return RowRejected(
            RowReason.MASK_UNPROVABLE,
            place,
            "the template renders this turn differently than it prompts: "
            f"{difference(prompt, full)}; {self._template.remedy}",
        )


def _left_out_call(position: int) -> RowRejected:
    return RowRejected(
        RowReason.CONTENT_NOT_RENDERED,
        f"messages[{position}].tool_calls",
        "the template leaves out this tool call",
    )


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
