"""Compare the speed of PREPARE with that of the libraries: `make benchmark-prepare`.

Prints a line of JSON per measurement and a table at the end. Ratios compare measurements of one run. Absolute numbers
depend on the machine. `--million` also proves a million rows, which takes minutes, and shows the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune_trainer.cpu import available_cpus
from finetune_trainer.data.chat_template.template import load_tokenizer

from benchmarks.prepare import proof, weights
from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.templates import TRL_TEMPLATES

_ROOT = Path(__file__).parents[2]
_SMOLLM = _ROOT / ".finetune" / "volumes" / "quickstart" / "models" / "SmolLM2-135M-Instruct"
_GOALS = {1: 1500.0, 3: 500.0}
_GOAL_MEGABYTES = 1500.0
_GOAL_PEAK = 1.5e9


class Table:
    """Prints measurements as lines of JSON at once, and as a table at the end."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str, str]] = []

    def add(self, name: str, value: float, unit: str, note: str = "", **more: Any) -> None:
        """Print one measurement and keep it for the table."""
        print(
            json.dumps({"name": name, "value": round(value, 3), "unit": unit, "note": note, **more}),
            flush=True,
        )
        self._lines.append((name, f"{value:,.2f} {unit}" if value < 100 else f"{value:,.0f} {unit}", note))

    def show(self) -> None:
        """Print all measurements as a table."""
        widths = [max(len(line[column]) for line in self._lines) for column in range(2)]
        print()
        for name, value, note in self._lines:
            print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {note}")


def measure_proof(table: Table, folder: Path, count: int) -> None:
    """Measure rows per second with two tokenizers, for the proof and for TRL."""
    tokenizers: dict[str, Any] = {"SmolLM2 (49k)": load_tokenizer(_SMOLLM)}
    qwen = RealTokenizers(folder).load("qwen")
    qwen.chat_template = (TRL_TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizers["Qwen3 (152k)"] = qwen
    for name, tokenizer in tokenizers.items():
        for turns, goal in _GOALS.items():
            ours = proof.prove_rows(tokenizer, turns, count)
            label = f"{name}, {turns} turn{'s' if turns > 1 else ''}"
            table.add(
                f"proof, {label}",
                ours.rows_per_second,
                "rows/s",
                f"goal {goal:,.0f}; {ours.tokens_per_row:.0f} tokens per row",
            )
            # TRL has no template for SmolLM2, so it cannot learn every answer with this tokenizer.
            every_answer = tokenizer is qwen
            theirs = proof.trl_rows(tokenizer, turns, count, available_cpus(), every_answer=every_answer)
            learned = "every answer" if every_answer else "the last answer alone"
            table.add(f"TRL, {label}", theirs.rows_per_second, "rows/s", f"learns {learned}")
            table.add(f"proof / TRL, {label}", ours.rows_per_second / theirs.rows_per_second, "times")


def measure_weights(table: Table, folder: Path, megabytes: int) -> None:
    """Measure quantizing, a copy of the same bytes, and bitsandbytes."""
    found = dict(weights.speeds(folder, megabytes, available_cpus()))
    for name, speed in found.items():
        table.add(
            name,
            speed.megabytes_per_second,
            "MB/s",
            f"{speed.processor_milliseconds:.2f} ms of CPU time per MB"
            + (f"; goal {_GOAL_MEGABYTES:,.0f}" if name.startswith("quantize a file") else ""),
        )
    file, copied, memory, library = found.values()
    table.add("quantize / copy", file.megabytes_per_second / copied.megabytes_per_second, "times")
    table.add(
        "quantize / bitsandbytes, CPU time",
        library.processor_milliseconds / memory.processor_milliseconds,
        "times",
    )
    table.add(
        "quantize a file / bitsandbytes in memory",
        file.megabytes_per_second / library.megabytes_per_second,
        "times",
    )


def measure_memory(table: Table, counts: list[int]) -> None:
    """Measure the peak memory of all processes of the proof, for different numbers of rows."""
    paths = os.pathsep.join(str(_ROOT / part) for part in ("trainer_image/src", "."))
    for count in counts:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.prepare.proof_memory", str(_SMOLLM), str(count)],
            stdout=subprocess.PIPE,
            check=True,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": paths},
        )
        found = json.loads(process.stdout)
        table.add(
            f"peak memory of the proof, {count:,} rows",
            found["peakBytes"] / 1e6,
            "MB",
            f"{found['rowsPerSecond']:,.0f} rows/s; goal below {_GOAL_PEAK / 1e6:,.0f}",
        )


def main() -> None:
    """Measure all parts, or the selected part."""
    parser = argparse.ArgumentParser(prog="benchmark-prepare", description=__doc__)
    parser.add_argument("--rows", type=int, default=8000, help="rows per measurement of the proof")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the weights")
    parser.add_argument("--million", action="store_true", help="also prove a million rows")
    parser.add_argument("--only", choices=("proof", "weights", "memory"), help="one part alone")
    options = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="benchmark-prepare-") as name:
        folder = Path(name)
        if options.only in {None, "weights"}:
            measure_weights(table, folder, options.megabytes)
        if options.only in {None, "proof"}:
            measure_proof(table, folder, options.rows)
    if options.only in {None, "memory"}:
        measure_memory(table, [20_000, 100_000, *([1_000_000] if options.million else [])])
    table.show()


if __name__ == "__main__":
    main()
