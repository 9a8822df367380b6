"""Records the trained model's predictions on held-out rows, so that MERGE can compare the merged model."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.evaluation.scoring import distributions, supervised_log_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAXIMUM_ROWS = 16
MAXIMUM_POSITIONS = 128
_MAXIMUM_BYTES = 256 * 1024 * 1024
# MERGE scores the rows on a CPU: 2,048 tokens through 7 B parameters take some minutes on a few cores.
_MAXIMUM_TOKENS = 2048


@dataclass(frozen=True)
class RecordedRow:
    """One row: its loss, and the log-probabilities (nats, float32) of all tokens at some supervised positions."""

    example: Example
    loss: RowLoss
    positions: tuple[int, ...]
    log_probabilities: torch.Tensor


def choose_rows(examples: Sequence[Example]) -> list[Example]:
    """Choose the first rows that together fit the token budget; if none fits, the shortest row."""
    chosen: list[Example] = []
    tokens = 0
    for example in examples:
        if len(chosen) < MAXIMUM_ROWS and tokens + len(example.input_ids) <= _MAXIMUM_TOKENS:
            chosen.append(example)
            tokens += len(example.input_ids)
    return chosen or [min(examples, key=lambda example: len(example.input_ids))]


def choose_positions(supervised: Sequence[int], limit: int) -> tuple[int, ...]:
    """Choose at most `limit` of the supervised positions, evenly spread from the first to the last."""
    count = min(limit, len(supervised))
    if count <= 1:
        return tuple(supervised[:count])
    last = len(supervised) - 1
    return tuple(supervised[round(index * last / (count - 1))] for index in range(count))


def record(model: Any, examples: Sequence[Example], path: Path) -> None:
    """Measure `model` on chosen rows and write the record atomically."""
    rows = choose_rows(examples)
    vocabulary = model.config.vocab_size
    positions = min(MAXIMUM_POSITIONS, _MAXIMUM_BYTES // (4 * vocabulary))
    limit = max(1, positions // len(rows))
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for index, example in enumerate(rows):
        chosen = choose_positions(example.supervised, limit)
        (log_probabilities,) = supervised_log_probabilities(model, [example])
        loss = RowLoss(example.row, -float(log_probabilities.double().sum()), len(example.supervised))
        tensors[f"{index}.input_ids"] = torch.tensor(example.input_ids, dtype=torch.int32)
        tensors[f"{index}.labels"] = torch.tensor(example.labels, dtype=torch.int32)
        tensors[f"{index}.positions"] = torch.tensor(chosen, dtype=torch.int32)
        tensors[f"{index}.log_probabilities"] = distributions(model, example, chosen)
        described.append(asdict(loss))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, metadata={"rows": json.dumps(described)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def read_record(path: Path) -> list[RecordedRow]:
    """Read what `record` wrote. Raises OSError if the file is missing."""
    with safe_open(path, framework="pt") as file:
        losses = [RowLoss(**loss) for loss in json.loads(file.metadata()["rows"])]
        return [
            RecordedRow(
                example=Example(
                    file.get_tensor(f"{index}.input_ids").tolist(),
                    file.get_tensor(f"{index}.labels").tolist(),
                    loss.row,
                ),
                loss=loss,
                positions=tuple(file.get_tensor(f"{index}.positions").tolist()),
                log_probabilities=file.get_tensor(f"{index}.log_probabilities"),
            )
            for index, loss in enumerate(losses)
        ]
