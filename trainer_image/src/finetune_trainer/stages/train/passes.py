"""The tensors of an optimizer step: one forward pass after another, made from the rows of the step."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.model.packed_attention import PackedRows
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.ranks.shares import shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from finetune_trainer.stages.train.batching import Batching
    from finetune_trainer.stages.train.ranks.group import Ranks


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

    Of several ranks, each has some of the passes. The counts are always those of the whole step: `other_tokens` and
    `other_computed` count the tokens of other ranks, without and with padding. `digest` is a checksum of all rows in their
    order, which ranks compare; 0 without ranks.

    It has no method `to`: accelerate would move all passes to the device at once.
    """

    passes: tuple[Pass, ...]
    examples: int
    learned: int
    other_tokens: int = 0
    other_computed: int = 0
    digest: int = 0

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.other_tokens + sum(each.tokens for each in self.passes)

    @property
    def computed(self) -> int:
        """Tokens with padding."""
        return self.other_computed + sum(each.input_ids.numel() for each in self.passes)

    def pin_memory(self) -> Step:
        """Return the step in pinned memory, from which copies to a GPU need not wait. torch's loader calls this."""
        return replace(self, passes=tuple(each.moved(torch.Tensor.pin_memory) for each in self.passes))


class StepCollator:
    """Makes a Step of the rows that the loader has drawn for it, with the passes of one of `ranks`.

    With `even`, all ranks have equally many passes, as those of a sharded model must.
    """

    def __init__(self, batching: Batching, ranks: Ranks = ALONE, *, even: bool = False) -> None:
        self._batching = batching
        self._ranks = ranks
        self._even = even

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Step:
        """Return the passes of rows with `input_ids` and `labels`; label -100 marks a token that is not learned."""
        ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        labels = [np.asarray(row["labels"], dtype=np.int64) for row in rows]
        make = _packed if self._batching.kind == "Packed" else _padded
        lengths = [len(each) for each in ids]
        if self._ranks.size == 1:
            passes = tuple(
                make([ids[row] for row in chosen], [labels[row] for row in chosen])
                for chosen in self._batching.passes(lengths)
            )
            return Step(passes, len(rows), sum(len(each.targets) for each in passes))
        plans = [self._plan(share, lengths) for share in shares(lengths, self._ranks.size)]
        others = [
            [lengths[row] for row in chosen]
            for rank, plan in enumerate(plans)
            for chosen in plan
            if rank != self._ranks.rank
        ]
        passes = tuple(
            make([ids[row] for row in chosen], [labels[row] for row in chosen])
            for chosen in plans[self._ranks.rank]
        )
        # A rank without a row takes part with a pass that learns nothing: the others wait for its gradients.
        least = max(map(len, plans)) if self._even else 1
        idle = replace(make([ids[0][:1]], [labels[0][:1]]), tokens=0)
        return Step(
            (*passes, *[idle] * (least - len(passes))),
            len(rows),
            sum(int(np.count_nonzero(each[1:] != IGNORED)) for each in labels),
            sum(map(sum, others)),
            sum(map(self._batching.padded, others)),
            zlib.crc32(np.concatenate([*ids, *labels]).tobytes()),
        )

    def _plan(self, share: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Return the rows of each pass of a rank that has the rows `share`."""
        return [
            [share[row] for row in chosen]
            for chosen in self._batching.passes([lengths[row] for row in share])
        ]


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
