"""Write what the training settings do to the loss on held-out rows into a table of docs/training.md.

The numbers are those that `python -m benchmarks.training` wrote to benchmarks/training/results.json. With --check, compare
only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/training/results.json")
PAGE = Path("docs/training.md")
BEGIN, END = "<!-- sweep: written by scripts/docs/training_sweep.py -->", "<!-- sweep: end -->"
NAMES = {
    "": "all as above",
    "learningRate": "learning rate",
    "warmupRatio": "warm-up",
    "schedule": "schedule",
    "weightDecay": "weight decay",
    "maximumGradientNorm": "gradient norm",
    "seed": "seed",
}
"""The settings as people call them, in the order of the table."""


def section(results: Mapping[str, Any]) -> str:
    """Return the text between the two marks of the page, with them."""
    runs = results["runs"]
    sets = list(dict.fromkeys(run["dataset"] for run in runs))
    packages = ", ".join(f"{name} from {results['packages'][name]}" for name in sets)
    defaults = ", ".join(
        f"{NAMES[name]} {_value(value)}" for name, value in results["defaults"].items() if name in NAMES
    )
    lines = [
        BEGIN,
        "",
        f"{results['steps']} steps of {results['batch']} rows, {results['heldOutRows']} held-out rows.",
        f"Data sets: {packages}.",
        f"Unless the first column says otherwise: {defaults}.",
        "Loss on held-out rows in nats per token, after training:",
        "",
        f"| setting | {' | '.join(sets)} |",
        f"|---|{'---|' * len(sets)}",
        f"| untrained | {' | '.join(_cell(runs, name, None, 'baseLoss') for name in sets)} |",
    ]
    for key in sorted({_key(run) for run in runs}, key=_order):
        label = f"{NAMES[key[0]]} {key[1]}".strip()
        lines.append(f"| {label} | {' | '.join(_cell(runs, name, key, 'tunedLoss') for name in sets)} |")
    return "\n".join([*lines, "", END])


def _key(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["setting"], "" if run["value"] is None else _value(run["value"])


def _order(key: tuple[str, str]) -> tuple[int, float, str]:
    place = list(NAMES).index(key[0])
    try:
        return place, float(key[1] or 0), ""
    except ValueError:
        return place, 0.0, key[1]


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(runs: Iterable[Mapping[str, Any]], name: str, key: tuple[str, str] | None, member: str) -> str:
    """Return a number of the run of a data set, `-` if it was not measured; any run has the untrained loss."""
    found = [run[member] for run in runs if run["dataset"] == name and key in (None, _key(run))]
    return f"{found[0]:.3f}" if found else "-"


def documents(root: Path) -> dict[Path, str]:
    """Return the content of the page, by its path below `root`; nothing before a benchmark ran."""
    if not (root / RESULTS).is_file():
        return {}
    results = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    before, rest = (root / PAGE).read_text(encoding="utf-8").split(BEGIN, maxsplit=1)
    return {PAGE: before + section(results) + rest.split(END, maxsplit=1)[1]}


def main() -> int:
    """Write the page, or compare it. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, and fail if the page differs")
    check = parser.parse_args().check
    for path, text in documents(ROOT).items():
        target = ROOT / path
        if target.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{path} must follow {RESULTS}; run scripts/docs/training_sweep.py")
            return 1
        target.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
