"""Draw a terminal recording as an SVG picture without external fonts or scripts.

Usage: `script -qc COMMAND recording.txt`, then `terminal_svg.py recording.txt "COMMAND" docs/images/NAME.svg`.
A progress bar that is redrawn in place appears once, in its last state. Timestamped log lines are left out.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from html import escape
from pathlib import Path

COLUMNS = 100
LINE_HEIGHT = 20
CHARACTER_WIDTH = 8.43
MARGIN = 20
TITLE_HEIGHT = 36
# `script` writes these; a progress bar ends with an erase sequence.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x07\x08]")
LOG = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z (?:DEBUG|INFO|WARNING|ERROR) |Script (?:started|done) |  warnings\.warn"
)
BAR = re.compile(r"(Prepare|Train|Merge) (\w+):")
COLORS = {"command": "#e6edf3", "bar": "#7ee787", "result": "#79c0ff", "plain": "#c9d1d9"}


def final_lines(recording: str) -> list[str]:
    """Return the lines that remain on the screen: of each progress bar its last state, no log lines."""
    lines: list[str] = []
    for raw in recording.splitlines():
        for frame in CONTROL.sub("", raw).split("\r"):
            text = LOG.split(frame)[0].rstrip()
            if not text:
                continue
            bar, last = BAR.match(text), BAR.match(lines[-1]) if lines else None
            if bar and last and bar.group() == last.group():
                lines[-1] = text
            else:
                lines.append(text)
    # A bar that never moved, or that only says that a stage ended, tells a reader nothing.
    return [line for line in lines if not re.search(r"Starting: 0|Finished:| 0%\|", line)]


def color(line: str) -> str:
    """Return the color of a line: a command, a progress bar, a result, or other output."""
    if line.startswith("$ "):
        return COLORS["command"]
    if BAR.match(line):
        return COLORS["bar"]
    if re.match(
        r"(dataset|format|warning|weights|passes|verdict|by row|metric|artifact|verified|update|losses) ",
        line,
    ):
        return COLORS["result"]
    return COLORS["plain"]


def draw(command: str, lines: list[str]) -> str:
    """Return the SVG document of a terminal window in which `command` printed `lines`."""
    rows: list[tuple[str, str]] = []
    for line in [f"$ {command}", *lines]:
        wrapped = textwrap.wrap(line, COLUMNS, subsequent_indent="  ", drop_whitespace=False) or [line]
        rows += [(part, color(line)) for part in wrapped]
    width = round(2 * MARGIN + COLUMNS * CHARACTER_WIDTH)
    height = TITLE_HEIGHT + MARGIN + LINE_HEIGHT * len(rows)
    size = f'width="{width}" height="{height}"'
    font = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} role="img">',
        f"<title>{escape(command)}</title>",
        f'<rect {size} rx="8" fill="#0d1117"/>',
        *(
            f'<circle cx="{MARGIN + 18 * index}" cy="18" r="6" fill="{fill}"/>'
            for index, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<g font-family="{font}" font-size="14" xml:space="preserve">',
    ]
    for index, (text, fill) in enumerate(rows):
        y = TITLE_HEIGHT + LINE_HEIGHT * (index + 1) - 6
        # textLength keeps the columns of bars and figures aligned in every font.
        length = round(CHARACTER_WIDTH * len(text), 1)
        svg.append(f'<text x="{MARGIN}" y="{y}" fill="{fill}" textLength="{length}">{escape(text)}</text>')
    return "\n".join([*svg, "</g>", "</svg>"]) + "\n"


def main() -> None:
    """Read the recording, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, help="file that `script` wrote")
    parser.add_argument("command", help="command to show at the prompt")
    parser.add_argument("picture", type=Path, help="SVG file to write")
    parser.add_argument("--folder", help="folder in which the command ran; its path is not shown")
    arguments = parser.parse_args()
    recording = arguments.recording.read_text(encoding="utf-8")
    if arguments.folder:
        recording = recording.replace(arguments.folder.rstrip("/") + "/", "")
    lines = final_lines(recording)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    arguments.picture.write_text(draw(arguments.command, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
