"""The tensors of an optimizer step: one forward pass after another, made from the rows of the step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.model.packed_attention import PackedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from finetune_trainer.stages.train.batching import Batching


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    `input_ids` is (rows, length), padded on the right, or (1, tokens) if `packed`. `positions` are the flat positions
    that predict a learned token, and `targets` those tokens. `tokens` counts tokens without padding. For packed rows,
    `position_ids` is (1, tokens) and restarts in each row. `lengths` has the tokens of each padded row.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    tokens: int
    packed: PackedRows | None = None
    position_ids: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @property
    def real(self) -> torch.Tensor | None:
        """Which places (rows, length) have a token that is no padding; None if all have."""
        if self.lengths is None or self.tokens == self.input_ids.numel():
            return None
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return places[None] < self.lengths[:, None]

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Pass:
        """Return the pass with `move` applied to each tensor."""
        return replace(
            self,
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            targets=move(self.targets),
            packed=None if self.packed is None else replace(self.packed, bounds=move(self.packed.bounds)),
            position_ids=None if self.position_ids is None else move(self.position_ids),
            lengths=None if self.lengths is None else move(self.lengths),
        )


@dataclass(frozen=True)
class Step:
    """The passes of one optimizer step, on the host. `learned` counts the tokens to predict, `examples` the rows.

    It has no method `to`: accelerate would move all passes to the device at once.
    """

    passes: tuple[Pass, ...]
    examples: int
    learned: int

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(each.tokens for each in self.passes)

    @property
    def computed(self) -> int:
        """Tokens with padding."""
        return sum(each.input_ids.numel() for each in self.passes)

    def pin_memory(self) -> Step:
        """Return the step in pinned memory, from which copies to a GPU need not wait. torch's loader calls this."""
        return replace(self, passes=tuple(each.moved(torch.Tensor.pin_memory) for each in self.passes))


class StepCollator:
    """Makes a Step of the rows that the loader has drawn for it."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Step:
        """Return the passes of rows with `input_ids` and `labels`; label -100 marks a token that is not learned."""
        ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        labels = [np.asarray(row["labels"], dtype=np.int64) for row in rows]
        make = _packed if self._batching.kind == "Packed" else _padded
        passes = tuple(
            make([ids[row] for row in chosen], [labels[row] for row in chosen])
            for chosen in self._batching.passes([len(each) for each in ids])
        )
        return Step(passes, len(rows), sum(len(each.targets) for each in passes))


def _packed(ids: Sequence[np.ndarray[Any, Any]], labels: Sequence[np.ndarray[Any, Any]]) -> Pass:
    lengths = [len(each) for each in ids]
    firsts = np.cumsum([0, *lengths[:-1]])
    positions, targets = _learned(labels, firsts)
    return Pass(
        torch.from_numpy(np.concatenate(ids))[None],
        positions,
        targets,
        sum(lengths),
        PackedRows.of(lengths),
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
    )


def _padded(ids: Sequence[np.ndarray[Any, Any]], labels: Sequence[np.ndarray[Any, Any]]) -> Pass:
    lengths = [len(each) for each in ids]
    # Nothing attends to padding, so any id serves.
    filled = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    for row, each in zip(filled, ids, strict=True):
        row[: len(each)] = each
    positions, targets = _learned(labels, np.arange(len(ids)) * max(lengths))
    return Pass(torch.from_numpy(filled), positions, targets, sum(lengths), lengths=torch.tensor(lengths))


def _learned(
    labels: Sequence[np.ndarray[Any, Any]], firsts: np.ndarray[Any, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat positions that predict a learned token, and those tokens. `firsts` are the rows' flat beginnings.

    The state at t - 1 predicts token t of the same row, so nothing predicts the first token of a row.
    """
    positions, targets = [], []
    for first, row in zip(firsts, labels, strict=True):
        places = np.flatnonzero(row[1:] != IGNORED)
        positions.append(first + places)
        targets.append(row[1:][places])
    return torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(targets))
