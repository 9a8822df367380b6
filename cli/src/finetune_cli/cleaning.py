"""Makes lines of others safe for a terminal: they cannot move the cursor, set the title or hide text."""

from __future__ import annotations

import re

# Commands to a terminal: CSI with its parameters, OSC up to its end, and those of two characters.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-~])")
_SHOWN = "\t\n\xa0\u3000\u200c\u200d"


def clean(text: str) -> str:
    """Return `text` without commands to a terminal, and with invisible characters as escapes. Lines and tabs stay."""
    text = _TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in _SHOWN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
