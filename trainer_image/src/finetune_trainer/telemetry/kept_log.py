"""The log of one attempt in the workspace: clean text of a bounded size, which outlives the pod."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

MAXIMUM_BYTES = 2 << 20
"""Size of a file. A longer log loses its middle: the start names the inputs, and the end has the failure."""
MAXIMUM_LINE = 4096
MAXIMUM_LINES = 1000
"""Characters of a line, and lines of one record, such as a traceback. The middle of longer ones is left out."""

# Commands to a terminal: CSI with its parameters, OSC up to its end or that of the line, and those of two characters.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-~])")
_JOINERS = "\u200c\u200d"
"""They reorder nothing, and scripts and emoji need them."""


class KeptLog(logging.Handler):
    """Appends records to a file, and cuts its middle out as soon as it is too long.

    Raises OSError if the file cannot be opened. Later errors lose lines and end nothing: standard error has them, too.
    """

    def __init__(self, path: Path, redact: Callable[[str], str], maximum: int = MAXIMUM_BYTES) -> None:
        super().__init__()
        self._path = path
        self._redact = redact
        self._maximum = maximum
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: FileIO = path.open("ab", buffering=0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as one or more lines."""
        try:
            # Removing a command can join the parts of a secret, and a cut can leave the half of one. So redaction is between.
            text = cut_record(self._redact(clean_lines(self.format(record))))
            line = text.encode("utf-8", "backslashreplace") + b"\n"
            if self._file.tell() + len(line) > self._maximum:
                self._shorten()
            self._file.write(line)
        except (OSError, ValueError):  # a full disk, or a file that is closed by now
            return

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _shorten(self) -> None:
        """Keep whole lines of the first and the last quarter of the limit."""
        content = self._path.read_bytes()
        part = self._maximum // 4
        first, last = content[:part], content[-part:]
        first, last = first[: first.rfind(b"\n") + 1], last[last.find(b"\n") + 1 :]
        note = b"[... %d bytes of the log are left out ...]\n" % (len(content) - len(first) - len(last))
        shorter = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        shorter.write_bytes(first + note + last)
        shorter.replace(self._path)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)


def clean_lines(text: str) -> str:
    """Return `text` without commands to a terminal, and with invisible characters as escapes. Lines and tabs stay."""
    text = _TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def cut_record(text: str) -> str:
    """Return `text` without the middle of long lines, and of a record that has too many lines."""
    lines = text.split("\n")
    if len(lines) > MAXIMUM_LINES:
        half = MAXIMUM_LINES // 2
        left_out = len(lines) - 2 * half
        lines = [*lines[:half], f"[... {left_out} lines are left out ...]", *lines[-half:]]
    return "\n".join(_cut(line) for line in lines)


def _cut(line: str) -> str:
    if len(line) <= MAXIMUM_LINE:
        return line
    half = MAXIMUM_LINE // 2
    return f"{line[:half]} [... {len(line) - 2 * half} characters are left out ...] {line[-half:]}"


def _escaped(line: str) -> str:
    return "".join(
        character if _is_shown(character) else character.encode("unicode_escape").decode()
        for character in line
    )


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in f"\t\xa0\u3000{_JOINERS}"
