"""Learns from conversations of sentinels what a template writes around the answer in turns of one shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.conversations.conversation import Answer, answer_of
from finetune_trainer.data.conversations.messages import REASONING_FIELDS
from finetune_trainer.data.masking.sentinels import sentinel

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Skeleton:
    """The text that the template writes around the answer's parts in turns of one shape, without white space.

    `literals` is None if the rendered conversation does not continue the served prompt. `left_out` holds the positions of
    messages whose words the template does not write into the prompt, and `left_out_calls` those of calls.
    """

    literals: tuple[str, ...] | None
    left_out: tuple[int, ...] = ()
    left_out_calls: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskedConversation:
    """Messages of one shape made of sentinels.

    `words` has the sentinels of each message that the template must write, and `calls` those of its tool calls. `traces`
    are the sentinels of reasoning, which history may leave out.
    """

    messages: list[dict[str, Any]]
    words: list[tuple[str, ...]]
    calls: list[tuple[str, ...]]
    traces: list[str]

    def left_out(self, prompt: str) -> tuple[int, ...]:
        """Return the positions of earlier messages whose words the prompt lacks."""
        return tuple(
            i for i, words in enumerate(self.words[:-1]) if any(word not in prompt for word in words)
        )

    def left_out_calls(self, prompt: str) -> tuple[int, ...]:
        """Return the positions of earlier messages of which the prompt lacks a call."""
        return tuple(
            i for i, words in enumerate(self.calls[:-1]) if any(word not in prompt for word in words)
        )

    @property
    def foreign(self) -> list[str]:
        """The sentinels that the last message does not have."""
        return [*(word for words in self.words[:-1] for word in words), *self.traces[:-1],
                *(word for words in self.calls[:-1] for word in words)]  # fmt: skip


def mask_conversation(messages: Sequence[dict[str, Any]], *, calls: bool) -> MaskedConversation:
    """Replace the words of all messages by sentinels and keep their shape; `calls` also those of earlier tool calls."""
    masked: list[dict[str, Any]] = []
    words: list[tuple[str, ...]] = []
    call_words: list[tuple[str, ...]] = []
    traces: list[str] = []
    for number, message in enumerate(messages):
        word, trace = sentinel(100 + 2 * number), sentinel(101 + 2 * number)
        other = _masked(message, word, trace)
        called: tuple[str, ...] = ()
        if calls and number < len(messages) - 1 and message.get("tool_calls"):
            other["tool_calls"], called = _masked_calls(message["tool_calls"], 2000 + 100 * number)
        masked.append(other)
        words.append((word,) if word in str(other.get("content")) else ())
        call_words.append(called)
        traces.append(trace)
    return MaskedConversation(masked, words, call_words, traces)


def shape_of(messages: Sequence[dict[str, Any]], tools: Any) -> str:
    """Return everything about a conversation that a template may branch on, except its words."""
    return json.dumps([[_shape(message) for message in messages], tools], sort_keys=True)


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


def _masked_calls(calls: list[dict[str, Any]], number: int) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Replace the names of called functions by sentinels; return them too."""
    words = tuple(sentinel(number + position) for position in range(len(calls)))
    named = [
        {**call, "function": {**call["function"], "name": word}}
        for call, word in zip(calls, words, strict=True)
    ]
    return named, words


def literals_of(written: str, parts: list[str]) -> tuple[str, ...] | None:
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


def matches(written: str, skeleton: Skeleton, answer: Answer) -> bool:
    """Return True if the text is that of the skeleton around exactly the parts of this answer."""
    if skeleton.literals is None or len(skeleton.literals) != len(answer.parts) + 1:
        return False
    if literals_of(written, answer.parts) == skeleton.literals:
        return True
    # A part that repeats words of the template is found too early. Then the whole text must agree.
    pieces = [skeleton.literals[0]]
    for part, literal in zip(answer.parts, skeleton.literals[1:], strict=True):
        pieces.extend(("".join(part.split()), literal))
    return "".join(pieces) == "".join(written.split()) and all(part in written for part in answer.parts)
