"""Print a Markdown table of the number and duration of tests per tier. With --write, also put it into tests/README.md.

The tests are those of this checkout. Their durations come from the JUnit file of `make test` or `make test-full`, in which
tests/conftest.py records each test's tier. Times are summed over the test processes. Each tier includes the tests of the
previous tier. A tier of which that file has no test has no time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "tests" / "README.md"
TIERS = ("unit", "test", "full")
TARGETS = {"unit": "make unit", "test": "make test", "full": "make test-full"}
BETWEEN_MARKS = re.compile(r"(?<=<!-- tiers -->\n).*?(?=<!-- end of tiers -->)", re.DOTALL)
_COLLECTED = "collected\t"

Counts = Mapping[str, Mapping[str, int]]
"""Number of tests by folder and tier."""
Seconds = Mapping[str, Mapping[str, float]]
"""Durations by folder and tier, as far as they were measured."""


def folder_of(path: str) -> str:
    """Return the folder whose tests are counted together: `tests/unit/<package>`, or a folder of `tests`."""
    parts = path.split("/")
    return "/".join(parts[: 3 if parts[1] == "unit" else 2])


def tier_of(properties: Any) -> str:
    """Return the tier among a test's properties, as pairs of name and value."""
    return next(str(value) for name, value in properties if name == "tier")


def read(path: Path) -> Seconds:
    """Add up the durations of a JUnit file. Raises SystemExit if there is no such file."""
    if not path.is_file():
        raise SystemExit(
            f"the durations must be in {path}, found no such file; run `make test` or `make test-full` first"
        )
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 -- our own file
        tier = tier_of((each.get("name"), each.get("value")) for each in case.iter("property"))
        folder = folder_of(case.get("classname", "").replace(".", "/"))
        seconds[folder][tier] += float(case.get("time", "0"))
    return seconds


def pytest_collection_finish(session: Any) -> None:
    """Print folder and tier of each collected test; `collected` loads this module as a plugin of pytest."""
    for item in session.items:
        folder = folder_of(item.nodeid.partition("::")[0])
        print(f"{_COLLECTED}{folder}\t{tier_of(item.user_properties)}")


def collected(folder: str = "tests") -> Counts:
    """Count the tests below a folder of this checkout without running them. Raises CalledProcessError if one is broken."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "scripts.tools.tiers",
        "--collect-only",
        "-qq",
        "-s",
        folder,
    ]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in done.stdout.splitlines():
        if line.startswith(_COLLECTED):
            _, place, tier = line.split("\t")
            counts[place][tier] += 1
    return counts


def _cell(count: int, seconds: float | None) -> str:
    if not count:
        return ""
    tests = f"{count} test{'' if count == 1 else 's'}"
    return tests if seconds is None else f"{tests}, {seconds / 60:.1f} min"


def table(counts: Counts, seconds: Seconds) -> str:
    """Return content and cost of the tiers as Markdown: one line per folder, and their sum."""
    measured = {tier for durations in seconds.values() for tier in durations}
    lines = ["| folder | " + " | ".join(f"`{TARGETS[tier]}`" for tier in TIERS) + " |", "|---|---|---|---|"]
    total = [(0, 0.0)] * len(TIERS)
    for folder in sorted(counts):
        count, time, cells = 0, 0.0, []
        for place, tier in enumerate(TIERS):
            count += counts[folder].get(tier, 0)
            time += seconds.get(folder, {}).get(tier, 0.0)
            cells.append(_cell(count, time if tier in measured else None))
            total[place] = (total[place][0] + count, total[place][1] + time)
        lines.append(f"| `{folder}` | " + " | ".join(cells) + " |")
    sums = (
        _cell(*of) if tier in measured else _cell(of[0], None) for tier, of in zip(TIERS, total, strict=True)
    )
    lines.append("| all | " + " | ".join(sums) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table with the durations of the given JUnit file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("durations", type=Path)
    parser.add_argument("--write", action="store_true", help="also replace the table in tests/README.md")
    arguments = parser.parse_args()
    seconds = read(arguments.durations)
    printed = table(collected(), seconds)
    print(printed, end="")
    if arguments.write:
        README.write_text(BETWEEN_MARKS.sub(lambda _: printed, README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
