"""Print a Markdown table of the number and duration of tests per tier. With --write, also put it into tests/README.md.

The source is the JUnit file of `make test` or `make test-full`, in which tests/conftest.py records each test's tier. Times are
summed over the test processes. Each tier includes the tests of the previous tier.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

README = Path(__file__).resolve().parents[2] / "tests" / "README.md"
TIERS = ("unit", "test", "full")
TARGETS = {"unit": "make unit", "test": "make test", "full": "make test-full"}
BETWEEN_MARKS = re.compile(r"(?<=<!-- tiers -->\n).*?(?=<!-- end of tiers -->)", re.DOTALL)

# Number of tests and their seconds, by folder and tier.
Costs = dict[str, dict[str, tuple[int, float]]]


def folder_of(classname: str) -> str:
    """Return the folder whose tests are counted together: `tests/unit/<package>`, or a folder of `tests`."""
    parts = classname.split(".")
    return "/".join(parts[: 3 if parts[1] == "unit" else 2])


def read(path: Path) -> Costs:
    """Add up the tests of a JUnit file. Raises SystemExit if there is no such file."""
    if not path.is_file():
        raise SystemExit(
            f"the durations must be in {path}, found no such file; run `make test` or `make test-full` first"
        )
    costs: Costs = defaultdict(lambda: dict.fromkeys(TIERS, (0, 0.0)))
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 -- our own file
        tier = next(p.get("value", "") for p in case.iter("property") if p.get("name") == "tier")
        row = costs[folder_of(case.get("classname", ""))]
        count, seconds = row[tier]
        row[tier] = (count + 1, seconds + float(case.get("time", "0")))
    return costs


def _cell(count: int, seconds: float) -> str:
    return f"{count} tests, {seconds / 60:.1f} min" if count else ""


def table(costs: Costs) -> str:
    """Return the costs as Markdown: one line per folder, and their sum."""
    lines = ["| folder | " + " | ".join(f"`{TARGETS[tier]}`" for tier in TIERS) + " |", "|---|---|---|---|"]
    total = dict.fromkeys(TIERS, (0, 0.0))
    for folder in sorted(costs):
        count, seconds, cells = 0, 0.0, []
        for tier in TIERS:
            count, seconds = count + costs[folder][tier][0], seconds + costs[folder][tier][1]
            cells.append(_cell(count, seconds))
            total[tier] = (total[tier][0] + count, total[tier][1] + seconds)
        lines.append(f"| `{folder}` | " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join(_cell(*total[tier]) for tier in TIERS) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table of the given JUnit file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("durations", type=Path)
    parser.add_argument("--write", action="store_true", help="also replace the table in tests/README.md")
    arguments = parser.parse_args()
    printed = table(read(arguments.durations))
    print(printed, end="")
    if arguments.write:
        README.write_text(BETWEEN_MARKS.sub(lambda _: printed, README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
