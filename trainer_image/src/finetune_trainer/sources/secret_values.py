"""Values from Secrets that a request sends in a header."""

from __future__ import annotations

import re

from finetune_trainer.errors import StageError
from finetune_trainer.sources.fetch_target import FetchTarget

_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


def require_header_value(value: str, name: str, target: FetchTarget) -> str:
    """Return `value` if it can be sent in a request's header. `name` is the secret's name in the message.

    Raises StageError with the target's access-denied reason. The message does not repeat the value.
    """
    if _HEADER_VALUE.fullmatch(value):
        return value
    place = next(place for place, char in enumerate(value) if not _HEADER_VALUE.fullmatch(char))
    raise StageError(
        target.access_denied,
        f"{name} must be one word of printable ASCII characters, because it is sent in a header; found "
        f"{_kind(value[place])} at position {place + 1} of {len(value)}; store only the value in the Secret",
    )


def _kind(char: str) -> str:
    if char in "\r\n":
        return "a line break"
    if char.isspace():
        return "white space"
    return "a character outside ASCII" if char > "\x7f" else "a control character"
