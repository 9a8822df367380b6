"""Reads one message of a row, in any known spelling, into the form that chat templates take."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import JsonError, kind_of, parse_json, shown

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "agent": "assistant",
    "llm": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
    "function_response": "tool",
    "function_result": "tool",
    "function_output": "tool",
}
_CALLING_ROLES = frozenset({"function_call", "tool_call"})
# Roles are compared without what people vary: capitals, spaces, hyphens and underscores.
_VARIED = re.compile(r"[\s_-]+")
_PLAIN_ROLES = {_VARIED.sub("", name): name for name in ROLES}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_CONTENT_KEYS = frozenset({"role", "from", "content", "value", "function_call", "weight", "train"})


class Message(NamedTuple):
    """A message with `role`, `content` and other members.

    `learned` is False if the dataset excludes it from learning; `content_place` names its content in the row.
    """

    value: dict[str, Any]
    learned: bool
    content_place: str


def read_message(item: Any, place: str) -> Message:
    """Check a message; `place` names it in messages for users.

    Raises RowRejected with InvalidMessages or UnsupportedContent.
    """
    if not isinstance(item, dict):
        raise _invalid(place, f"must be an object, found {_kind(item)}")
    given = _given(item)
    key = "from" if "from" in given and "role" not in given else "role"
    name = given.get(key)
    known = known_role(name)
    if known is None:
        wanted = ", ".join(sorted({*ROLES.values()}))
        raise _invalid(
            f"{place}.{key}",
            f"must be one of {wanted}, or a common name of one such as human, ai or function, found {shown(name)}",
        )
    role = ROLES[known]
    content_key = "value" if ("value" in given and "content" not in given) or key == "from" else "content"
    content_place = f"{place}.{content_key}"
    content = text_of(given.get(content_key, given.get("content")), content_place)
    message: dict[str, Any] = {"role": role}
    if content is not None:
        message["content"] = content
    message.update((field, value) for field, value in given.items() if field not in _CONTENT_KEYS)
    if known in _CALLING_ROLES:
        message |= {"tool_calls": _json(content, content_place, "calls of tools"), "content": ""}
    calls = message.pop("tool_calls", None) or given.get("function_call")
    if calls:
        message["tool_calls"] = _tool_calls(calls, f"{place}.tool_calls")
        if role == "assistant":
            message.setdefault("content", "")
    if "content" not in message:
        raise _invalid(content_place, "must be a string, found none")
    for field in REASONING_FIELDS:
        if field in message and not isinstance(message[field], str):
            raise _invalid(f"{place}.{field}", f"must be a string, found {_kind(message[field])}")
    require_json_text(message, place)
    return Message(message, _is_learned(given, place), content_place)


def known_role(name: Any) -> str | None:
    """Return the key of ROLES that a role's name stands for, in any spelling, or None."""
    if not isinstance(name, str):
        return None
    return name if name in ROLES else _PLAIN_ROLES.get(_VARIED.sub("", name).lower())


def text_of(content: Any, place: str) -> str | None:
    """Return content as one text. The texts of several parts are joined with nothing between them.

    Raises RowRejected(UnsupportedContent) for a part that is not text, and RowRejected(InvalidMessages) for other values.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _invalid(place, f"must be a string, found {_kind(content)}")
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        inside = f"{place}[{index}]"
        if not isinstance(part, dict):
            raise _invalid(inside, f"must be a part of text, found {_kind(part)}")
        kind = part.get("type", "text")
        if not isinstance(kind, str):
            raise _invalid(f"{inside}.type", f"must be text, found {shown(kind)}")
        if kind not in _TEXT_PARTS:
            raise RowRejected(
                RowReason.UNSUPPORTED_CONTENT,
                f"{inside}.type",
                f"must be text, found a part of type {shown(kind)}",
            )
        if not isinstance(part.get("text"), str):
            raise _invalid(f"{inside}.text", f"must be a string, found {_kind(part.get('text'))}")
        texts.append(part["text"])
    return "".join(texts)


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Return tools as the JSON schemas of functions that servers pass to templates. Raises RowRejected(InvalidMessages).

    The list or each tool may be JSON text. A bare function is wrapped as `{"type": "function", "function": ...}`.
    """
    if isinstance(tools, str):
        tools = _json(tools, "tools", "tools") if tools.strip() else None
    if not tools:
        return None
    if isinstance(tools, list):
        tools = [_json(tool, "tools", "a tool") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _invalid("tools", "must be a list of JSON schemas of functions")
    require_json_text(tools, "tools")
    return [_wrapped(tool) for tool in tools]


def require_json_text(value: Any, place: str) -> None:
    """Raise RowRejected(InvalidMessages) for lone surrogates, which no tokenizer reads, and for values outside JSON."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise _invalid(place, "contains half of a surrogate pair") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _invalid(place, f"must have texts as keys, found {_kind(key)}")
            require_json_text(key, place)
            require_json_text(item, f"{place}.{key}" if key.isidentifier() else place)
    elif isinstance(value, list):
        for item in value:
            require_json_text(item, place)
    elif value is not None and not isinstance(value, int | float):
        raise _invalid(place, f"must be text, found {_kind(value)}")


def _given(item: dict[str, Any]) -> dict[str, Any]:
    """Return the members that are not null; without a role, names such as `Role` and `Content` are read in small letters."""
    given = {key: value for key, value in item.items() if value is not None}
    if "role" in given or "from" in given:
        return given
    small = {key: key.lower() for key in given if isinstance(key, str) and key.lower() in _CONTENT_KEYS}
    return {small.get(key, key): value for key, value in given.items()}


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Check tool calls. Arguments given as JSON text become the object that chat templates expect."""
    if isinstance(calls, str):
        calls = _json(calls, place, "tool calls")
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise _invalid(place, f"must be a list of tool calls, found {_kind(calls)}")
    checked = []
    for index, call in enumerate(calls):
        wrapped = _wrapped(call) if isinstance(call, dict) else {}
        function = wrapped.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _invalid(f"{place}[{index}].function", "must be an object with a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments or "{}", f"{place}[{index}].function.arguments", "arguments")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise _invalid(
                f"{place}[{index}].function.arguments", f"must be a JSON object, found {_kind(arguments)}"
            )
        checked.append({**wrapped, "type": "function", "function": {**function, "arguments": arguments}})
    return checked


def _wrapped(function: dict[str, Any]) -> dict[str, Any]:
    """Return a tool or a tool call with its function under `function`, as in the OpenAI API."""
    if function.get("function") is not None or not isinstance(function.get("name"), str):
        return function
    outside = {key: function[key] for key in ("id",) if function.get(key) is not None}
    inside = {key: value for key, value in function.items() if key not in {"id", "type", "function"}}
    return {**outside, "type": "function", "function": inside}


def _is_learned(message: dict[str, Any], place: str) -> bool:
    """Return False if `weight: 0` or `train: false` excludes an answer from learning; most rows have neither."""
    weight, train = message.get("weight", 1), message.get("train", True)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _invalid(f"{place}.weight", f"must be 0 or 1, found {shown(weight)}")
    if not isinstance(train, bool):
        raise _invalid(f"{place}.train", f"must be true or false, found {shown(train)}")
    return weight == 1 and train


def _json(text: Any, place: str, what: str) -> Any:
    try:
        return parse_json(text or "")
    except JsonError as error:
        hint = "; Python's own notation is not JSON" if "'" in text[:3] else ""
        raise _invalid(place, f"must be JSON text of {what}: {error.message}{hint}") from error


def _invalid(place: str, detail: str) -> RowRejected:
    return RowRejected(RowReason.INVALID_MESSAGES, place, detail)


def _kind(value: Any) -> str:
    return "none" if value is None else type(value).__name__ if kind_of(value) == "null" else kind_of(value)
