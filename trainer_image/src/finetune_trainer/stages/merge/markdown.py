"""Text of users, models and servers in Markdown: it stays text, in a table too."""

from __future__ import annotations

import re

from finetune_trainer.data.rows.excerpts import excerpt

_SPECIAL = re.compile(r"([\\`*_{}\[\]#+!|<>&~$])")
_BACKTICKS = re.compile(r"`+")
_LONGEST = 2000


def plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it is: no markup, no HTML, no link, one line."""
    return _SPECIAL.sub(r"\\\1", excerpt(text, _LONGEST))


def code(text: str, *, in_table: bool = False) -> str:
    """Return `text` as inline code of one line. Its fence is longer than any run of backticks in the text."""
    shown = excerpt(text, _LONGEST)
    if in_table:
        # Readers of tables take an escaped pipe as a pipe, also inside of code.
        shown = shown.replace("|", "\\|")
    longest = max((len(run) for run in _BACKTICKS.findall(shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"
