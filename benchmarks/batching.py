"""Share of the computed tokens that are no padding, and the passes of a step: `make benchmark-batching`.

The rows are those of the quickstart and of the three data sets of `benchmarks/training/datasets.py`, tokenized as PREPARE does
it for the quickstart's model. No model runs: TRAIN's own code splits each step into passes, in three ways. Prints a line of
JSON per data set and number of rows, and a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

from finetune_trainer.contract.train_result import BatchingKind
from finetune_trainer.stages.train.batching import Batching

from benchmarks.training.datasets import PACKAGES, rows
from tests.support.e2e.quickstart import BASE_MODEL, VOLUME

_SEED = 7
_ROWS = 2000
_LONGEST = 2048
STEPS = ((4, 4), (16, 4), (16, 16))
"""Rows of a step and of a micro-batch."""


def lengths_of(file: Path) -> list[int]:
    """Return the tokens of each example that PREPARE makes of the rows."""
    command = [sys.executable, "-m", "finetune_trainer", "masks", "--tokenizer", str(BASE_MODEL)]
    listed = subprocess.run(
        [*command, "--dataset", str(file), "--maximum-length", str(_LONGEST)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    found = [json.loads(line) for line in listed.stdout.splitlines()]
    return [len(example["input_ids"]) for row in found if row["accepted"] for example in row["examples"]]


def shares(lengths: Sequence[int], per_step: int, micro_batch: int) -> dict[str, Any]:
    """Return the share of real tokens and the mean passes of a step of an epoch in random order, by kind of batching."""
    order = list(lengths)
    random.Random(_SEED).shuffle(order)  # noqa: S311 -- a sample, not a secret
    steps = [order[first : first + per_step] for first in range(0, len(order), per_step)]
    found: dict[str, Any] = {}
    for kind in get_args(BatchingKind):
        batching = Batching(kind, micro_batch * max(lengths), micro_batch)
        passes = [[step[row] for row in one] for step in steps for one in batching.passes(step)]
        computed = sum(batching.padded(one) for one in passes)
        found[kind] = {
            "realTokens": round(sum(lengths) / computed, 4),
            "passes": round(len(passes) / len(steps), 2),
        }
    return found


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each data set and each size of a step."""
    files = {"quickstart": VOLUME / "datasets" / "airports.train.jsonl"}
    for name in PACKAGES:
        files[name] = folder / f"{name}.jsonl"
        content, _ = rows(name, _ROWS, 0)
        files[name].write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    for name, file in files.items():
        lengths = lengths_of(file)
        for per_step, micro_batch in STEPS:
            yield {
                "dataset": name,
                "rows": len(lengths),
                "tokens": {"shortest": min(lengths), "median": median(lengths), "longest": max(lengths)},
                "rowsPerStep": per_step,
                "microBatch": micro_batch,
                **shares(lengths, per_step, micro_batch),
            }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the lines as a Markdown table."""
    kinds = {"AsDrawn": "padded", "Grouped": "grouped", "Packed": "packed"}
    text = [
        f"| data set | tokens of a row | rows of a step | micro-batch | {' | '.join(kinds.values())} | passes of a step |",
        f"|---|---|---|---|{'---|' * len(kinds)}---|",
    ]
    for line in lines:
        tokens = line["tokens"]
        cells = [f"{100 * line[kind]['realTokens']:.1f} %" for kind in kinds]
        passes = ", ".join(f"{line[kind]['passes']:g}" for kind in kinds)
        text.append(
            f"| {line['dataset']} | {tokens['shortest']} to {tokens['longest']}, median {tokens['median']:g} "
            f"| {line['rowsPerStep']} | {line['microBatch']} | {' | '.join(cells)} | {passes} |"
        )
    return "\n".join(text)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(prog="benchmark-batching", description=__doc__).parse_args()
    lines = []
    with tempfile.TemporaryDirectory(prefix="benchmark-batching-") as folder:
        for line in measure(Path(folder)):
            print(json.dumps(line), flush=True)
            lines.append(line)
    print(f"\n{table(lines)}")


if __name__ == "__main__":
    main()
