"""Learns from sentinels whether a template reads the arguments of a tool call as an object or as JSON text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.rejection import RowRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finetune_trainer.data.chat_template.content_parts import Render

_QUESTION, _WORD, _RESULT = "zqx0034vkj", "zqx0035vkj", "zqx0036vkj"
# Python writes the first if a template joins an object to text; JSON writes the second if text is encoded again.
_SPELLED_OBJECT, _ENCODED_TWICE = "{'word'", '\\"word'


def with_text_arguments(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Give tool calls their arguments as JSON text."""
    return [
        {**message, "tool_calls": [_as_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def needs_text_arguments(render: Render) -> bool:
    """Return True if the template renders a call only with its arguments as text.

    Servers pass an object to templates, so the object comes first.
    """
    return not _shows(render, text=False) and _shows(render, text=True)


def _shows(render: Render, *, text: bool) -> bool:
    function = {"name": "canary", "arguments": {"word": _WORD}}
    call = {"type": "function", "id": "canary001", "function": function}
    called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "canary", "tool_call_id": "canary001", "content": _RESULT}
    question = {"role": "user", "content": _QUESTION}
    for messages in ([question, called], [question, called, result]):
        form: list[Mapping[str, Any]] = with_text_arguments(messages) if text else list(messages)
        try:
            rendered = render(form, None, generation=False)
        except RowRejected:
            continue
        return _WORD in rendered and _SPELLED_OBJECT not in rendered and _ENCODED_TWICE not in rendered
    return False


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
