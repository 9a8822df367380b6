"""Checks the messages of a row, applies the reasoning policy, and returns a typed conversation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.data.conversations.messages import (
    REASONING_FIELDS,
    read_message,
    read_tools,
    require_json_text,
)
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

_THINK_BLOCK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_PLACE = re.compile(r"messages(?:\[(?P<index>\d+)\](?:\.(?P<member>[^.\[]+))?)?")
_LEADING_THINK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>(?P<answer>.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """Messages in the form that chat templates take, and the tools offered. The last message is a learned answer.

    `untrained` holds the positions of answers that the dataset excludes from learning (`weight: 0`, `train: false`).
    `column`, `places` and `contents` are the names in the dataset of all messages, each message, and its content.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    untrained: frozenset[int] = frozenset()
    column: str = field(default="messages", compare=False)
    places: tuple[str, ...] = field(default=(), compare=False)
    contents: tuple[str, ...] = field(default=(), compare=False)

    @property
    def assistant_turns(self) -> list[int]:
        """Positions of the assistant messages that are learned.

        An answer before the first question is only context, because no server asks for it. It is learned if no question
        follows, as in rows of a system prompt and an answer.
        """
        answers = [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and index not in self.untrained
        ]
        asked = next((i for i, message in enumerate(self.messages) if message["role"] in {"user", "tool"}), 0)
        return [index for index in answers if index > asked] or answers

    def renamed(self, place: Callable[[str], str]) -> Conversation:
        """Return the conversation with other names for its parts in the dataset."""
        return replace(
            self,
            column=place(self.column),
            places=tuple(map(place, self.places)),
            contents=tuple(map(place, self.contents)),
        )

    def place_in_row(self, place: str) -> str:
        """Return the name in the dataset of a place such as `messages[1].content`."""
        match = _PLACE.match(place)
        if match is None:
            return place
        if match["index"] is None:
            return self.column
        index, member = int(match["index"]), match["member"]
        if index >= len(self.places):
            return place
        return self.places[index] if member is None else self._member(index, member)

    def _member(self, index: int, member: str) -> str:
        whole, content = self.places[index], self.contents[index]
        if member == "content" or whole == content:
            return content
        if member not in REASONING_FIELDS:
            return f"{whole}.{member}"
        given = next((name for name in REASONING_FIELDS if self.messages[index].get(name)), None)
        return content if given is None else f"{whole}.{given}"


@dataclass(frozen=True)
class Answer:
    """The parts of an assistant message that must be learned.

    `reasoning` is the trace, either from a separate field or from a leading `<think>` block of the content. In the
    second case, `inline` is true and `content` is still the whole text. `text` is the answer after the trace.
    """

    content: str
    text: str
    reasoning: str | None = None
    inline: bool = False
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Stripped texts in the order in which the model generates them; empty ones are left out."""
        return [part for part in ((self.reasoning or "").strip(), self.text.strip()) if part]


def answer_of(message: dict[str, Any]) -> Answer:
    """Split an assistant message into its parts."""
    content = message.get("content") or ""
    calls = message.get("tool_calls") or []
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    if reasoning is not None:
        return Answer(content, content, reasoning, tool_calls=calls)
    match = _LEADING_THINK.match(content)
    if match is None:
        return Answer(content, content, tool_calls=calls)
    return Answer(content, match["answer"], match["reasoning"], inline=True, tool_calls=calls)


def is_empty_answer(message: dict[str, Any]) -> bool:
    """Return True if an assistant message has neither text nor a tool call nor a reasoning trace."""
    answer = answer_of(message)
    return not answer.parts and not answer.tool_calls


def parse_conversation(row: dict[str, Any], reasoning: Literal["Keep", "Strip"]) -> Conversation:
    """Check a row and return its conversation.

    `row` has `messages` in the spelling of any known format. Optional members are `tools`; `system`, the text of a system
    message for rows that have none; `column`, the name of `messages` in the dataset; `places`, the names of the single
    messages in the dataset; and `texts`, those places that hold a text and no message. Raises RowRejected with
    InvalidMessages, UnsupportedContent, NoAssistantTurn or EmptyAnswer.
    """
    raw = row.get("messages")
    column = row.get("column", "messages")
    if not isinstance(raw, list) or not raw:
        found = "none" if raw is None else "an empty list" if raw == [] else kind_of(raw)
        raise RowRejected(RowReason.INVALID_MESSAGES, column, f"must be a list of messages, found {found}")
    places = row.get("places") or [f"{column}[{index}]" for index in range(len(raw))]
    texts = row.get("texts", frozenset())
    read = [read_message(item, place) for item, place in zip(raw, places, strict=True)]
    contents = [
        place if place in texts else message.content_place
        for message, place in zip(read, places, strict=True)
    ]
    messages = [message.value for message in read]
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    untrained = {index for index in answers if not read[index].learned}
    trained = [index for index in answers if index not in untrained]
    if not trained:
        flagged = ": all are marked with weight 0 or train false" if answers else ""
        raise RowRejected(
            RowReason.NO_ASSISTANT_TURN,
            column,
            f"no message with the role assistant is left to learn{flagged}",
        )
    messages = messages[: trained[-1] + 1]
    for index in answers:
        if index >= len(messages):
            break
        if reasoning != "Strip":
            continue
        given, stripped = messages[index], _without_reasoning(messages[index])
        messages[index] = stripped
        # An answer that was empty from the start is learned as it is; the report counts it.
        emptied = stripped != given and is_empty_answer(stripped)
        if emptied and index in trained:
            raise RowRejected(
                RowReason.EMPTY_ANSWER,
                contents[index],
                "the answer contains only reasoning, which is stripped",
            )
    system = _system(row.get("system"), messages)
    shift = len(system)
    before = ("system",) * shift
    return Conversation(
        system + messages,
        read_tools(row.get("tools")),
        frozenset(index + shift for index in untrained if index < len(messages)),
        column,
        (*before, *places[: len(messages)]),
        (*before, *contents[: len(messages)]),
    )


def _system(text: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the system message that a row's `system` column adds. Raises RowRejected(InvalidMessages)."""
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise RowRejected(RowReason.INVALID_MESSAGES, "system", f"must be a string, found {kind_of(text)}")
    require_json_text(text, "system")
    if messages[0]["role"] not in {"system", "developer"}:
        return [{"role": "system", "content": text}] if text.strip() else []
    if messages[0]["content"] != text:
        raise RowRejected(
            RowReason.INVALID_MESSAGES,
            "system",
            "must equal the system message in the row's messages, found another text",
        )
    return []


def _without_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    stripped = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    content = stripped.get("content")
    if isinstance(content, str):
        content = _THINK_BLOCK.sub("", content)
        # Some templates open the block in the prompt, so data made with them only closes it.
        stripped["content"] = content.rpartition("</think>")[2].lstrip() if "</think>" in content else content
    return stripped
