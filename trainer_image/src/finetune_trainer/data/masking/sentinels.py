"""Words and messages of canary conversations."""

from __future__ import annotations

from typing import Any


def sentinel(number: int) -> str:
    """Return a word that no template writes and no tokenizer treats in a special way."""
    return f"zqx{number:04d}vkj"


def canary_call(word: str) -> dict[str, Any]:
    """Return an assistant message that calls a tool with `word` as its argument."""
    function = {"name": "canary", "arguments": {"word": word}}
    call = {"type": "function", "id": "canary001", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def canary_result(word: str) -> dict[str, Any]:
    """Return the result of the canary's call."""
    return {"role": "tool", "name": "canary", "tool_call_id": "canary001", "content": word}
