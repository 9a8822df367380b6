"""Draw what survives a merge under each rounding rule: a picture and a table for docs/merging.md.

The numbers are those that `python -m benchmarks.merge` wrote to benchmarks/merge/results.json. With --check, compare only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/merge/results.json")
PICTURE = Path("docs/images/merge-survival.svg")
PAGE = Path("docs/merging.md")
BEGIN, END = "<!-- survival: written by scripts/docs/merge_survival.py -->", "<!-- survival: end -->"
BASES = {
    "TrainedWeights": "onto the NF4 weights of the training, dequantized",
    "OriginalWeights": "onto the original 16-bit weights",
}
OURS = "(MERGE)"
"""Part of the names of the rules that MERGE uses."""
OUR_COLOR, OTHER_COLOR = "#2f6f4f", "#6b7a89"
WIDTH, LABEL, BAR, ROW = 900, 370, 420, 22


def rows_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured rules, by base, rule and learning rate."""
    rows: list[dict[str, Any]] = results["survival"]
    order = {base: place for place, base in enumerate(BASES)}
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    return sorted(rows, key=lambda row: (order[row["onto"]], rules.index(row["rule"]), row["learningRate"]))


def kept_gain(row: Mapping[str, Any]) -> float:
    """Return the share of the trained model's gain in loss that the merged model has."""
    gain: float = row["baseLoss"] - row["trainedLoss"]
    return float((row["baseLoss"] - row["mergedLoss"]) / gain) if gain else 1.0


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the table of all rules in Markdown."""
    lines = [
        "| base | rounding | learning rate | update that survives | KL(trained, merged) | effect | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['onto']} | {row['rule']} | {row['learningRate']:g} | {row['projection']:.1%} | {row['divergence']:.2g} "
        f"| {row['effect']:.2g} | {row['baseLoss']:.4f}, {row['trainedLoss']:.4f}, {row['mergedLoss']:.4f} |"
        for row in rows
    ]
    return lines


def section(results: Mapping[str, Any]) -> str:
    """Return the part of docs/merging.md between its two marks."""
    rows = rows_of(results)
    picture = PICTURE.relative_to(PAGE.parent)
    head = f"All numbers are measured on the quickstart's model, on {rows[0]['tokens']} held-out tokens."
    lines = [
        BEGIN,
        f"![Share of the update that survives each rounding rule, by learning rate]({picture})",
        "",
        head,
        "`python -m benchmarks.merge` measures them, and [benchmarks](../benchmarks/README.md) has the details.",
        "The effect is KL(trained, base), and the losses are those of base, trained and merged model.",
        "All are in nats per token.",
        "The names in parentheses are MERGE and other tools that round like this.",
        "",
        *table(rows),
        END,
    ]
    return "\n".join(lines)


def picture(results: Mapping[str, Any]) -> str:
    """Return the SVG picture: one panel for each base, one bar for each rule and learning rate."""
    rows = rows_of(results)
    parts: list[str] = []
    y = 30
    for base, title in BASES.items():
        found = [row for row in rows if row["onto"] == base]
        if not found:
            continue
        parts.append(f'<text x="16" y="{y}" class="title">{escape("Merged " + title)}</text>')
        y += 14
        for rule in dict.fromkeys(row["rule"] for row in found):
            for place, row in enumerate(row for row in found if row["rule"] == rule):
                parts.append(
                    _bar(row, rule if place == 0 else "", OUR_COLOR if OURS in rule else OTHER_COLOR, y)
                )
                y += ROW
            y += 8
        y += 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        'aria-label="Share of the update that survives each rounding rule">'
    )
    style = (
        "<style>text{font:13px system-ui,sans-serif;fill:#1c1e21}.title{font-weight:600;font-size:15px}"
        ".soft{fill:#5b6169}</style>"
    )
    return "\n".join(
        [head, style, f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *parts, "</svg>", ""]
    )


def _bar(row: Mapping[str, Any], label: str, color: str, y: int) -> str:
    share = row["projection"]
    width = round(max(0.0, min(1.0, share)) * BAR, 1)
    text = f"{share:.1%} of the update, {kept_gain(row):.0%} of the gain"
    # The text stands inside a long bar, so that the picture keeps its width.
    inside = width > BAR * 0.6
    x = LABEL + 8 if inside else LABEL + width + 8
    fill = ' style="fill:#ffffff"' if inside else ""
    return (
        f'<text x="16" y="{y + 15}">{escape(label)}</text>'
        f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end" class="soft">{row["learningRate"]:g}</text>'
        f'<rect x="{LABEL}" y="{y + 2}" width="{BAR}" height="{ROW - 4}" fill="#eef0f2"/>'
        f'<rect x="{LABEL}" y="{y + 2}" width="{width}" height="{ROW - 4}" fill="{color}"/>'
        f'<text x="{x}" y="{y + 15}"{fill}>{escape(text)}</text>'
    )


def documents(root: Path) -> dict[Path, str]:
    """Return the content of every file that this script writes, by path below `root`; none before a benchmark ran."""
    if not (root / RESULTS).is_file():
        return {}
    results = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    if "survival" not in results:
        return {}
    page = (root / PAGE).read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, maxsplit=1)
    after = rest.split(END, maxsplit=1)[1]
    return {PICTURE: picture(results), PAGE: before + section(results) + after}


def main() -> int:
    """Write the documents, or compare them. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, and fail if a document differs")
    check = parser.parse_args().check
    stale = []
    for path, text in documents(ROOT).items():
        target = ROOT / path
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not check:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if check and stale:
        print(
            "\n".join(f"{path} must follow {RESULTS}; run scripts/docs/merge_survival.py" for path in stale)
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
