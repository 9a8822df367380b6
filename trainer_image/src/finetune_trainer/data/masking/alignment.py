"""Finds the served prompt in a rendered conversation, and the text that follows it."""

from __future__ import annotations

from itertools import takewhile


def text_behind(prompt: str, full: str) -> str | None:
    """Return the text of `full` that follows `prompt`; None if `full` begins differently.

    White space may differ, because the prompt is what is served. White space at the end of the prompt is not repeated.
    """
    if full.startswith(prompt):
        return full[len(prompt) :]
    same, position = _aligned(prompt, full)
    if prompt[same:].strip():
        return None
    rest = full[position:]
    served = prompt[len(prompt.rstrip()) :]
    written = rest[: len(rest) - len(rest.lstrip())]
    if written.startswith(served):
        return rest[len(served) :]
    return rest[len(written) :] if served.startswith(written) else rest.lstrip()


def shared_despite_space(prompt: str, full: str) -> int:
    """Return the position in `prompt` at which both texts first differ in more than white space."""
    return _aligned(prompt, full)[0]


def _aligned(prompt: str, full: str) -> tuple[int, int]:
    """Return the positions in both texts behind the longest beginning that they share, white space aside."""
    same = position = 0
    for place, character in enumerate(prompt):
        if character.isspace():
            continue
        ahead = position
        while ahead < len(full) and full[ahead].isspace():
            ahead += 1
        if ahead == len(full) or full[ahead] != character:
            break
        same, position = place + 1, ahead + 1
    return same, position


def shared_beginning(first: str, second: str) -> int:
    """Return the number of characters with which both texts begin alike."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def first_difference(prompt: str, full: str, width: int = 32) -> tuple[str, str]:
    """Return up to `width` characters of both texts around their first difference."""
    start = max(0, shared_beginning(prompt, full) - width // 2)
    return prompt[start : start + width], full[start : start + width]
