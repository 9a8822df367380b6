"""The lines of a run: one JSON object for each case, written as soon as the case has ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["measured", "failed", "absent", "timeout", "skipped"]
"""`absent`: a part that the measurement needs is not there. `skipped`: no time was left to begin."""


@dataclass(frozen=True)
class Line:
    """The outcome of one case. `reason` says why it is not measured, and is empty if it is.

    `below` names the packages that are older than the project supports, such as "torch 2.11.0 (at least 2.13)". `dry` is
    true for tiny shapes on a CPU, whose numbers mean nothing.
    """

    measurement: str
    case: str
    status: Status
    seconds: float
    reason: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    dry: bool = False
    below: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the line as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_lines(lines: Iterable[str]) -> list[Line]:
    """Read lines that `Line.text` wrote. The last one may be cut off by the end of the machine, and is left out then."""
    found = []
    for text in lines:
        try:
            document = json.loads(text)
        except ValueError:
            continue
        found.append(Line(**{**document, "below": tuple(document["below"])}))
    return found


class LineFile:
    """Appends lines to a file, each of which is on the disk before the next case begins, and prints them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.write_text("", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line.text() + "\n")
        print(line.text(), flush=True)


def shorten(error: BaseException, most: int = 400) -> str:
    """Return type and message of an error in one line."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"
