"""Records what the trained model predicts on held-out rows, so that MERGE can compare the merged model.

The record also says what the adapter changes on these rows, and how much the arithmetic of the training differs from
float32, in which MERGE computes.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.evaluation.float32 import computes_in_float32, in_float32
from finetune_trainer.evaluation.record_rows import choose_positions, choose_rows
from finetune_trainer.evaluation.scoring import (
    kl_divergence,
    predictions,
    supervised_log_probabilities,
)
from finetune_trainer.model.out_of_memory import is_device_out_of_memory
from finetune_trainer.model.output_head import is_sharded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

MAXIMUM_POSITIONS = 128
# MERGE holds as much for each variant of the weights.
_MAXIMUM_BYTES = 64 * 1024 * 1024
Arithmetic = Literal["Float32", "Measured", "Unknown"]


@dataclass(frozen=True)
class Effect:
    """What the adapter changes in one row, and what float32 arithmetic would change.

    `trained` and `base` are the log-probabilities (nats, float32) of the supervised tokens with the adapter and
    without it, and `base_divergence` is KL(trained || base) at the recorded positions. The others are the same in
    float32 arithmetic, with KL(trained || trained in float32); None if the training computed in float32 itself, and if
    they could not be measured.
    """

    trained: torch.Tensor
    base: torch.Tensor
    base_divergence: torch.Tensor
    trained_float32: torch.Tensor | None = None
    base_float32: torch.Tensor | None = None
    arithmetic_divergence: torch.Tensor | None = None


@dataclass(frozen=True)
class RecordedRow:
    """One row: its loss, and the log-probabilities (nats, float32) of all tokens at some supervised positions.

    `effect` is None in the record of an older trainer.
    """

    example: Example
    loss: RowLoss
    positions: tuple[int, ...]
    log_probabilities: torch.Tensor
    effect: Effect | None = None


@dataclass(frozen=True)
class Record:
    """All rows, the arithmetic of the numbers, and the digest of the tokenizer and template of the training.

    The arithmetic is "Float32", "Measured" (another one, with its distance from float32) or "Unknown" (another one,
    whose distance could not be measured, or an older trainer's). The digest is None if it is not known.
    """

    rows: tuple[RecordedRow, ...]
    arithmetic: Arithmetic = "Unknown"
    tokenization: str | None = None

    @property
    def knows_effect(self) -> bool:
        """Whether the record has the numbers of the base, which the records of older trainers lack."""
        return all(row.effect is not None for row in self.rows)


def record(
    model: Any,
    examples: Sequence[Example],
    base: Sequence[RowLoss],
    tuned: Sequence[RowLoss],
    tokenization: str,
    path: Path | None,
) -> None:
    """Measure the adapted `model` on chosen rows, with its adapter and without it, and write the record atomically.

    `base` and `tuned` are the losses of the examples without and with the adapter; `tokenization` is the digest of
    `model.tokenization`. All ranks of a sharded model measure, and those without a `path` write nothing. Such a model is
    not measured in float32: its parts cannot change their type.
    """
    rows = choose_rows(examples, base, tuned)
    vocabulary = model.config.get_text_config().vocab_size
    positions = min(MAXIMUM_POSITIONS, _MAXIMUM_BYTES // (4 * vocabulary))
    limit = max(1, positions // len(rows))
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for index, example in enumerate(rows):
        chosen = choose_positions(example.supervised, limit)
        trained, distribution = predictions(model, example, chosen)
        with model.disable_adapter():
            without, base_distribution = predictions(model, example, chosen)
        loss = RowLoss(example.row, -float(trained.double().sum()), len(example.supervised))
        tensors |= {
            f"{index}.input_ids": torch.tensor(example.input_ids, dtype=torch.int32),
            f"{index}.labels": torch.tensor(example.labels, dtype=torch.int32),
            f"{index}.positions": torch.tensor(chosen, dtype=torch.int32),
            f"{index}.log_probabilities": distribution,
            f"{index}.trained": trained,
            f"{index}.base": without,
            f"{index}.base_divergence": kl_divergence(distribution, base_distribution),
        }
        # An earlier trainer reads these members only.
        described.append({"row": loss.row, "nats": loss.nats, "tokens": loss.tokens})
    arithmetic: Arithmetic = "Float32"
    if not computes_in_float32(model):
        measured = {} if is_sharded(model) else _in_float32(model, rows, tensors)
        tensors |= measured
        arithmetic = "Measured" if measured else "Unknown"
    metadata = {"rows": json.dumps(described), "arithmetic": arithmetic, "tokenization": tokenization}
    if path is not None:
        _save(tensors, metadata, path)


def read_record(path: Path) -> Record:
    """Read what `record` wrote, also that of an older trainer. Raises OSError if the file is missing."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        losses = [RowLoss(**loss) for loss in json.loads(metadata["rows"])]
        names = set(file.keys())
        rows = [
            RecordedRow(
                example=Example(
                    file.get_tensor(f"{index}.input_ids").tolist(),
                    file.get_tensor(f"{index}.labels").tolist(),
                    loss.row,
                ),
                loss=loss,
                positions=tuple(file.get_tensor(f"{index}.positions").tolist()),
                log_probabilities=file.get_tensor(f"{index}.log_probabilities"),
                effect=_effect(file, names, index),
            )
            for index, loss in enumerate(losses)
        ]
    return Record(tuple(rows), metadata.get("arithmetic", "Unknown"), metadata.get("tokenization"))


def _effect(file: Any, names: set[str], index: int) -> Effect | None:
    if f"{index}.base" not in names:
        return None
    members = (
        "trained",
        "base",
        "base_divergence",
        "trained_float32",
        "base_float32",
        "arithmetic_divergence",
    )
    return Effect(
        **{member: file.get_tensor(f"{index}.{member}") for member in members if f"{index}.{member}" in names}
    )


def _in_float32(
    model: Any, rows: Sequence[Example], measured: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Measure the rows again in float32; an empty result if the device has too little memory."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        with in_float32(model):
            for index, example in enumerate(rows):
                positions = measured[f"{index}.positions"].tolist()
                trained, distribution = predictions(model, example, positions)
                with model.disable_adapter():
                    (base,) = supervised_log_probabilities(model, [example])
                divergence = kl_divergence(measured[f"{index}.log_probabilities"], distribution)
                tensors |= {
                    f"{index}.trained_float32": trained,
                    f"{index}.base_float32": base,
                    f"{index}.arithmetic_divergence": divergence,
                }
    except Exception as error:
        if not is_device_out_of_memory(error):
            raise
        _log.warning(
            "the device has too little memory to measure the model in float32, so MERGE allows more difference"
        )
        return {}
    return tensors


def _save(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, metadata=metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
