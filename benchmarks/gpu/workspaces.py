"""Workspaces as PREPARE leaves them, with random rows of given lengths."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.data.dataset.tables import TableWriter
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.workspace.layout import WorkspaceLayout

from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.weights import Weights
from tests.support.workspaces import run_spec

_SPREAD = 1.0
"""Standard deviation of the logarithm of a chat's length."""


def row_lengths(rows: Rows, count: int, seed: int = 3) -> list[int]:
    """Return the tokens of `count` rows: all of one length, or lognormal around the median, as chats are."""
    if rows.median is None:
        return [rows.length] * count
    source = random.Random(seed)  # noqa: S311 -- data of a benchmark
    drawn = (round(source.lognormvariate(0.0, _SPREAD) * rows.median) for _ in range(count))
    return [min(max(4, length), rows.length) for length in drawn]


def random_examples(lengths: Sequence[int], vocabulary: int, seed: int = 4) -> list[Example]:
    """Return rows of random ids, of which the second half is learned."""
    source = random.Random(seed)  # noqa: S311 -- data of a benchmark
    found = []
    for row, length in enumerate(lengths, start=1):
        ids = [source.randrange(vocabulary) for _ in range(length)]
        half = length // 2
        found.append(Example(ids, [IGNORED] * half + ids[half:], row))
    return found


def make_workspace(
    root: Path, weights: Weights, lengths: Sequence[int], held_out: Sequence[int] = (16, 16)
) -> WorkspaceLayout:
    """Make the workspace `root` anew, with training and validation rows of these lengths."""
    shutil.rmtree(root, ignore_errors=True)
    layout = WorkspaceLayout(root)
    shutil.copytree(weights.base, layout.base)
    layout.quantized_model.symlink_to(weights.model, target_is_directory=True)
    config = json.loads((weights.base / "config.json").read_text(encoding="utf-8"))
    for path, chosen in ((layout.training_table, lengths), (layout.validation_table, held_out)):
        writer = TableWriter(path)
        for example in random_examples(chosen, config["vocab_size"]):
            writer.add(example)
        writer.finish()
    return layout


def make_run(layout: WorkspaceLayout, device: str, rows: Rows, steps: int, **training: Any) -> RunSpec:
    """Return a run spec for the workspace; `training` has members of the run spec's `training`."""
    settings: dict[str, Any] = {
        "maximumSteps": steps,
        "learningRate": 0.0001,
        "effectiveBatchSize": rows.per_step,
        "microBatchSize": rows.per_pass,
        "maximumLength": max(16, rows.length),
        "lora": lora(),
        **training,
    }
    return run_spec(layout.root, layout.root / "output", device, **settings)


def lora(rank: int = 16, targets: str = "AllLinear") -> dict[str, Any]:
    """Return the adapter's settings: the project's defaults but for rank and targets."""
    return {"rank": rank, "alpha": 2 * rank, "dropout": 0, "targetModules": targets, "variant": "Standard"}
