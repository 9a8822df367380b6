"""Finds the served prompt in a rendered conversation, and the text that follows it."""

from __future__ import annotations

from itertools import takewhile


def text_behind(prompt: str, full: str) -> str | None:
    """Return the text of `full` that follows `prompt`; None if `full` begins differently.

    White space may differ, because the prompt is what is served. White space at the end of the prompt is not repeated.
    """
    if full.startswith(prompt):
        return full[len(prompt) :]
    position = 0
    for character in prompt:
        if character.isspace():
            continue
        while position < len(full) and full[position].isspace():
            position += 1
        if position == len(full) or full[position] != character:
            return None
        position += 1
    rest = full[position:]
    served = prompt[len(prompt.rstrip()) :]
    written = rest[: len(rest) - len(rest.lstrip())]
    if written.startswith(served):
        return rest[len(served) :]
    return rest[len(written) :] if served.startswith(written) else rest.lstrip()


def shared_beginning(first: str, second: str) -> int:
    """Return the number of characters with which both texts begin alike."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def first_difference(prompt: str, full: str, width: int = 32) -> tuple[str, str]:
    """Return up to `width` characters of both texts around their first difference."""
    start = max(0, shared_beginning(prompt, full) - width // 2)
    return prompt[start : start + width], full[start : start + width]
