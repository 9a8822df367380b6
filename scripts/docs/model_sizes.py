"""Write the sizes of popular models, the accuracy of traces and their cost into tables of docs/models.md.

The estimator computes memory and smallest GPU anew, from the configs and traces that `python -m benchmarks.models --write`
put into benchmarks/models/results.json. With --check, compare only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_cli.plan.inputs import DEFAULT_JOB
from finetune_operator.api.quantities import binary_size
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.decision import smallest_product
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.request import SizingRequest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/models/results.json")
PAGE = Path("docs/models.md")
_GIB = 1 << 30
_MIB = 1 << 20


def sizes(results: Mapping[str, Any]) -> list[str]:
    """Return the table of popular models with their memory and their smallest GPU."""
    entries = {**results["formula"], **results["sizes"]}
    spec = FineTuneJobSpec.parse(dict(DEFAULT_JOB))
    return [
        f"{len(entries)} models, with a job's defaults and rows of {spec.training.maximum_length:,} tokens.",
        "",
        "| model | type | parameters | memory | smallest GPU | by |",
        "|---|---|---|---|---|---|",
        *(_size(name, entries[name], spec) for name in sorted(entries, key=natural)),
    ]


def _size(name: str, entry: Mapping[str, Any], spec: FineTuneJobSpec) -> str:
    """Return the line of a model: `entry` is its config.json, or has its trace."""
    length = spec.training.maximum_length
    if "trace" in entry:
        trace = MemoryTrace.model_validate(entry["trace"])
        request = SizingRequest(spec, None, length, trace=trace)
        kind, parameters, how = entry["type"], trace.parameters, "trace"
    else:
        shape = model_shape(entry)
        request = SizingRequest(spec, shape, length)
        kind, parameters, how = entry["model_type"], shape.parameters, "formula"
    smallest = smallest_product(request)
    memory = binary_size(request.frugal(smallest).estimate.device_bytes)
    product = "none" if smallest is None else smallest.product
    return f"| {name} | `{kind}` | {_count(parameters)} | {memory} | {product} | {how} |"


def accuracy(results: Mapping[str, Any]) -> list[str]:
    """Return the table that compares traces with runs of all layers."""
    found = results["accuracy"]
    rows, differences = [], []
    for name in sorted(found, key=natural):
        entry = found[name]
        traced, run = max(entry["traced"].values()), max(entry["run"].values())
        differences.append(traced / run - 1)
        rows.append(
            f"| {name} | {entry['plan']} | {run / _GIB:.2f} GiB | {traced / _GIB:.2f} GiB | {differences[-1]:+.2%} | "
            f"{entry['seconds']:.0f} s | {entry['host_bytes'] // _MIB:,} MiB |"
        )
    return [
        f"Models compared: {len(rows)}, from {min(differences):+.2%} to {max(differences):+.2%}.",
        _measured(found.values()),
        "",
        "| model | rows x tokens | all layers | trace | difference | processor time | host memory |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def cost(results: Mapping[str, Any]) -> list[str]:
    """Return the table of what whole traces cost."""
    found = results["cost"]
    lines = [
        _measured(found.values()),
        "",
        "| model | ways | time | processor time | host memory |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(found, key=natural):
        entry = found[name]
        lines.append(
            f"| {name} | {entry['ways']} | {entry['seconds']:.0f} s | {entry['processor_seconds']:.0f} s | "
            f"{entry['host_bytes'] // _MIB:,} MiB |"
        )
    return lines


def _measured(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return when the entries were measured, and with which libraries."""
    entries = list(entries)
    first, last = (choose(entry["day"] for entry in entries) for choose in (min, max))
    days = f"on {first}" if first == last else f"from {first} to {last}"
    used = {tuple(sorted(entry["tools"].items())) for entry in entries}
    named = (", ".join(f"{tool} {number}" for tool, number in tools) for tools in sorted(used))
    return f"Measured {days} with {'; '.join(named)}."


SECTIONS = {"sizes": sizes, "accuracy": accuracy, "cost": cost}


def marks(part: str) -> tuple[str, str]:
    """Return the marks between which a part's table stands."""
    return f"<!-- {part}: written by scripts/docs/model_sizes.py -->", f"<!-- {part}: end -->"


def documents(root: Path) -> dict[Path, str]:
    """Return the page with its tables as the results say."""
    results = json.loads((root / RESULTS).read_text("utf-8"))
    text = (root / PAGE).read_text("utf-8")
    for part, table in SECTIONS.items():
        if part in results:
            text = _replaced(text, marks(part), table(results))
    return {PAGE: text}


def natural(name: str) -> list[tuple[int, float, str]]:
    """Return a key that sorts numbers in a name by their value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name.lower())
    return [(1, float(part), "") if part[:1].isdigit() else (0, 0.0, part) for part in parts]


def _replaced(text: str, between: tuple[str, str], lines: Iterable[str]) -> str:
    begin, end = between
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE} must have the marks {begin} and {end}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def _count(parameters: int) -> str:
    count = parameters / 1e9
    if count >= 100:
        return f"{count:,.0f} B"
    return f"{count:.1f} B" if count >= 0.9995 else f"{parameters / 1e6:.0f} M"


def main() -> None:
    """Write the tables, or compare them with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for path, text in documents(ROOT).items():
        if (ROOT / path).read_text("utf-8") == text:
            continue
        if options.check:
            print(f"{path} must follow {RESULTS}; run scripts/docs/model_sizes.py")
            sys.exit(1)
        (ROOT / path).write_text(text, "utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
