"""A task that a tiny model learns in seconds: each prompt names one of four things, and its answer is a fixed word."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from finetune_trainer.data.dataset.tables import SCHEMA
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import AutoModelForCausalLM

from tests.support import workspaces

_ANSWERS = {"A": "1 2", "B": "3 4", "C": "5 6", "D": "7 8"}
_TRAINING = 256
_STEPS = 250


def write_base(folder: Path) -> None:
    """Write a tiny Llama that was trained on all its weights with shuffled answers, so it knows only their form."""
    workspaces.write_base(folder, "llama", torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    examples = _examples(1, _TRAINING, shuffled=True)
    for step in range(_STEPS):
        batch = [examples[(16 * step + place) % len(examples)] for place in range(16)]
        ids = torch.tensor([example["input_ids"] for example in batch])
        labels = torch.tensor([example["labels"] for example in batch])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(folder)


def prepare(root: Path, base: Path, *, held_out: int, shuffled: bool = False) -> WorkspaceLayout:
    """Write a prepared workspace for the task; `shuffled` exchanges the answers of the rows, in both tables."""
    layout = workspaces.prepare(root, base)
    for path, seed, rows in ((layout.training_table, 2, _TRAINING), (layout.validation_table, 3, held_out)):
        examples = _examples(seed, rows, shuffled=shuffled)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(examples, SCHEMA))
    return layout


def _examples(seed: int, rows: int, *, shuffled: bool) -> list[dict[str, Any]]:
    """Return rows of equal length, with three letters in each prompt that mean nothing."""
    tokenizer = workspaces.small_tokenizer()
    draw = random.Random(seed)  # noqa: S311 -- test data
    kinds = [list(_ANSWERS)[row % 4] for row in range(rows)]
    answers = [_ANSWERS[kind] for kind in kinds]
    if shuffled:
        draw.shuffle(answers)
    examples = []
    for row, (kind, answer) in enumerate(zip(kinds, answers, strict=True), start=1):
        filler = " ".join(draw.choices("EFGHIJ", k=3))
        # The letter comes last: a few steps teach a tiny model no attention.
        prompt = f"<|im_start|>user\n{filler} {kind}"
        ids, learned = tokenizer(prompt)["input_ids"], tokenizer(f"{answer}<|im_end|>")["input_ids"]
        examples.append({"row": row, "input_ids": ids + learned, "labels": [-100] * len(ids) + learned})
    return examples
