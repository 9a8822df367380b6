"""A row's messages as typed values, checked and with the reasoning policy applied."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_trainer.data.rows import RowReason, RowRefused

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_THINK_BLOCK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_LEADING_THINK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>(?P<answer>.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """Messages in the form chat templates take, cut after the last assistant turn, and the tools offered."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def assistant_turns(self) -> list[int]:
        """Positions of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]


@dataclass(frozen=True)
class Answer:
    """The parts of an assistant message that must be learned.

    `reasoning` is the trace, from a field of its own or from a leading `<think>` block of the content, in
    which case `inline` is true and `content` is still the whole text. `text` is the answer after it.
    """

    content: str
    text: str
    reasoning: str | None = None
    inline: bool = False
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Stripped texts in the order in which they are generated, empty ones left out."""
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


def parse_conversation(row: dict[str, Any], reasoning: Literal["Keep", "Strip"]) -> Conversation:
    """Check a row and return its conversation.

    Raises RowRefused with InvalidMessages, NoAssistantTurn or EmptyAnswer.
    """
    raw = row.get("messages")
    if not isinstance(raw, list) or not raw:
        found = (
            "none" if raw is None else type(raw).__name__ if not isinstance(raw, list) else "an empty list"
        )
        raise RowRefused(RowReason.INVALID_MESSAGES, "messages", f"must be a list of messages, found {found}")
    messages = [_message(item, f"messages[{index}]") for index, item in enumerate(raw)]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise RowRefused(RowReason.NO_ASSISTANT_TURN, "messages", "no message has the role assistant")
    messages = messages[: last + 1]
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if reasoning == "Strip":
            message = _without_reasoning(message)  # noqa: PLW2901 -- the stripped message takes its place
            messages[index] = message
        if not (message.get("content") or "").strip() and not message.get("tool_calls"):
            raise RowRefused(
                RowReason.EMPTY_ANSWER,
                f"messages[{index}].content",
                "the answer has no text and no tool call",
            )
    return Conversation(messages, _tools(row.get("tools")))


def _message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RowRefused(RowReason.INVALID_MESSAGES, place, f"must be an object, found {type(item).__name__}")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise RowRefused(
            RowReason.INVALID_MESSAGES, f"{place}.role", f"must be one of {known}, found {_short(role)}"
        )
    message = {key: value for key, value in item.items() if value is not None}
    content = message.get("content")
    if content is None and not (role == "assistant" and message.get("tool_calls")):
        raise RowRefused(RowReason.INVALID_MESSAGES, f"{place}.content", "must be a string, found none")
    if content is not None and not isinstance(content, str):
        raise RowRefused(
            RowReason.INVALID_MESSAGES,
            f"{place}.content",
            f"must be a string, found {type(content).__name__}",
        )
    for name in REASONING_FIELDS:
        if name in message and not isinstance(message[name], str):
            raise RowRefused(RowReason.INVALID_MESSAGES, f"{place}.{name}", "must be a string")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], f"{place}.tool_calls")
        message.setdefault("content", "")
    _require_text(message, place)
    return message


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Check tool calls; arguments given as JSON text become the object that chat templates expect."""
    if not isinstance(calls, list):
        raise RowRefused(RowReason.INVALID_MESSAGES, place, "must be a list of tool calls")
    checked = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowRefused(
                RowReason.INVALID_MESSAGES, f"{place}[{index}].function", "must be an object with a name"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict):
            raise RowRefused(
                RowReason.INVALID_MESSAGES, f"{place}[{index}].function.arguments", "must be a JSON object"
            )
        checked.append({**call, "type": "function", "function": {**function, "arguments": arguments}})
    return checked


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowRefused(RowReason.INVALID_MESSAGES, "tools", "must be a list of JSON schemas of functions")
    _require_text(tools, "tools")
    return tools or None


def _require_text(value: Any, place: str) -> None:
    """Refuse lone surrogates, which JSON can spell but no tokenizer can read."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowRefused(RowReason.INVALID_MESSAGES, place, "holds half of a surrogate pair") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_text(key, place)
            _require_text(item, f"{place}.{key}" if key.isidentifier() else place)
    elif isinstance(value, list):
        for item in value:
            _require_text(item, place)


def _without_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    stripped = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    content = stripped.get("content")
    if isinstance(content, str):
        content = _THINK_BLOCK.sub("", content)
        # Some templates open the block in the prompt, so that data made with them only closes it.
        stripped["content"] = content.rpartition("</think>")[2].lstrip() if "</think>" in content else content
    return stripped


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."
