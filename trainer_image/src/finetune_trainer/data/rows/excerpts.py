"""Makes untrusted text safe to show: short, without control characters, in one reading order."""

from __future__ import annotations

import re

# Control characters, format characters that hide or reorder text, and halves of surrogate pairs. The joiners U+200C
# and U+200D stay: scripts and emoji need them, and they reorder nothing.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, keep_lines: bool = False) -> str:
    """Return `text` with invisible characters written as escapes.

    `keep_lines` leaves line feeds and tabs as they are.
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if keep_lines and character in "\n\t":
            return character
        if character in _NAMED:
            return _NAMED[character]
        code = ord(character)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

    return _UNSEEN.sub(escape, text)


def excerpt(text: str, maximum: int, *, keep_lines: bool = False) -> str:
    """Return the beginning of `text`, made visible, in at most `maximum` characters; `...` marks a cut."""
    # Escapes only make text longer, so nothing after the first `maximum` characters can be shown.
    shown = visible(text[: maximum + 1], keep_lines=keep_lines)
    return shown if len(shown) <= maximum else shown[: maximum - 3] + "..."


def middle_cut(text: str, maximum: int) -> str:
    """Return `text`, made visible, with its lines; if it exceeds `maximum` characters, its middle is left out."""
    if len(text) <= maximum:
        return visible(text, keep_lines=True)
    half = (maximum - 5) // 2
    return visible(text[:half], keep_lines=True) + " ... " + visible(text[-half:], keep_lines=True)


def percent(fraction: float) -> str:
    """Return a fraction as text, with more digits the closer it is to 0; more than 0 is never shown as 0."""
    if 0 < fraction < 0.0001:
        return "under 0.01%"
    digits = 2 if 0 < fraction < 0.01 else 1 if 0 < fraction < 0.1 or 0.99 < fraction < 1 else 0
    return f"{fraction:.{digits}%}"
