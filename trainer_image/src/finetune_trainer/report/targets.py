"""Target prompts: a file of prompts like those in production."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

MAXIMUM_PROMPTS = 10_000
MAXIMUM_BYTES = 16 << 20
_PROMPT_FIELDS = ("prompt", "text", "instruction", "question", "input")
_REMEDY = 'write one prompt a line, or JSON: a list of strings or of {"prompt": ...} or {"messages": [...]}'


def read_target_prompts(path: Path) -> list[str]:
    """Read the prompts of a file, in order, without empty ones.

    A file that begins with `[` holds a JSON list. A file that begins with `{` holds JSON Lines or one object. Any other
    file is text with one prompt a line, and a line that is a JSON string stands for that string. A file that begins
    with `[` and is not JSON is text too. The prompt of an object is its `prompt`, `text`, `instruction`, `question` or
    `input`, or the last user message of its `messages` or `conversations`. Raises StageError(InvalidDataset).
    """
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise _invalid(f"at most {MAXIMUM_BYTES >> 20} MiB", f"{path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _invalid("a readable file", f"{type(error).__name__}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _invalid("UTF-8 text", f"an invalid byte at position {error.start}") from error
    prompts = [prompt.strip() for prompt in _prompts(text)]
    prompts = [prompt for prompt in prompts if prompt]
    if not 1 <= len(prompts) <= MAXIMUM_PROMPTS:
        raise _invalid(f"1 to {MAXIMUM_PROMPTS} prompts", f"{len(prompts)} without the empty ones")
    return prompts


def _invalid(wanted: str, found: str) -> StageError:
    return StageError(
        Reason.INVALID_DATASET, f"dataset.targetPrompts must hold {wanted}, found {found}; {_REMEDY}"
    )


def _prompts(text: str) -> list[str]:
    if text.lstrip()[:1] in {"[", "{"}:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            document = [document]
        if isinstance(document, list):
            return [_prompt(item, f"item {number}") for number, item in enumerate(document, start=1)]
    prompts = []
    objects = text.lstrip().startswith("{")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if objects or line.lstrip()[0] == '"':
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not objects:
                    prompts.append(line)
                    continue
                raise _invalid(
                    "JSON on every line if the first line is an object", f"line {number}: {error}"
                ) from None
            prompts.append(_prompt(value, f"line {number}"))
        else:
            prompts.append(line)
    return prompts


def _prompt(value: Any, place: str) -> str:
    if isinstance(value, str):
        return _encodable(value, place)
    if isinstance(value, dict):
        for name in _PROMPT_FIELDS:
            if isinstance(value.get(name), str):
                return _encodable(value[name], place)
        messages = value.get("messages", value.get("conversations", value.get("prompt")))
        if isinstance(messages, list):
            for message in reversed(messages):
                content = _user_content(message)
                if content is not None:
                    return _encodable(content, place)
    found = type(value).__name__ if not isinstance(value, dict) else f"an object with {sorted(value)[:5]}"
    raise _invalid('a text, {"prompt": ...} or {"messages": [...]} with a user message', f"{place}: {found}")


def _user_content(message: Any) -> str | None:
    """Return the text of a user's message, None for any other message."""
    if not isinstance(message, dict) or message.get("role", message.get("from")) not in {"user", "human"}:
        return None
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str)) or None
    return content if isinstance(content, str) else None


def _encodable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("Unicode text", f"{place}: half of a surrogate pair") from None
    return text
