"""An evaluation that ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.stages.train.ranks import losses
from finetune_trainer.stages.train.ranks.group import ALONE, Ranks
from finetune_trainer.stages.train.ranks.losses import common_budgets, pacing, shared_losses

_EXAMPLES = [Example(list(range(row)), list(range(row)), row) for row in (4, 9, 2, 7, 5)]


class _Threads(Ranks):
    """A rank whose others are threads."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(values)
        self._values, self._barrier = values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(10)
        return list(self._values)


def _losses(examples: Sequence[Example]) -> list[RowLoss]:
    return [RowLoss(example.row, example.row / 8, 1, 0) for example in examples]


def _on(ranks: int, abandoned: int | None = None) -> tuple[list[Any], list[list[int]]]:
    """Return the losses that each rank gets, and the rows that each has measured."""
    values: list[Any] = [None] * ranks
    measured: list[list[int]] = [[] for _ in range(ranks)]
    barrier = Barrier(ranks)

    def one(rank: int) -> Any:
        def measure(examples: Sequence[Example]) -> list[RowLoss] | None:
            measured[rank] = [example.row for example in examples]
            return None if rank == abandoned else _losses(examples)

        return shared_losses(_Threads(rank, values, barrier), _EXAMPLES, measure)

    with ThreadPoolExecutor(ranks) as threads:
        return list(threads.map(one, range(ranks))), measured


def test_every_rank_gets_the_losses_of_all_rows_in_their_order() -> None:
    for ranks in (2, 3, 7):
        found, measured = _on(ranks)
        assert found == [_losses(_EXAMPLES)] * ranks
        assert sorted(row for rows in measured for row in rows) == [2, 4, 5, 7, 9]


def test_a_process_without_others_measures_all_rows_at_once() -> None:
    calls: list[Any] = []

    def measure(examples: Sequence[Example]) -> list[RowLoss]:
        calls.append(examples)
        return _losses(examples)

    assert shared_losses(ALONE, _EXAMPLES, measure) == _losses(_EXAMPLES)
    assert calls == [_EXAMPLES]


def test_a_part_that_a_rank_has_abandoned_leaves_no_rank_with_losses() -> None:
    assert _on(3, abandoned=1)[0] == [None] * 3


def test_ranks_that_share_weights_run_as_many_passes_as_the_one_with_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches have at most 9 tokens, so the shares need two passes, one and none."""
    shares = [[_EXAMPLES[1], _EXAMPLES[3]], [_EXAMPLES[0], _EXAMPLES[2]], []]
    idle: list[list[Example]] = []
    monkeypatch.setattr(losses, "is_sharded", lambda _model: True)
    monkeypatch.setattr(losses, "supervised_scores", lambda _model, examples: idle.append(examples))
    for rank, expected in enumerate((0, 1, 2)):
        idle.clear()
        pacing(None, _Threads(rank, [None] * 3, Barrier(3)), 9)(shares)
        assert idle == [[_EXAMPLES[2]]] * expected


def test_only_ranks_that_share_weights_take_the_smallest_batches_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sharded, expected in ((True, [3]), (False, [9, 3])):
        monkeypatch.setattr(losses, "is_sharded", lambda _model, sharded=sharded: sharded)
        assert common_budgets(None, [9, 3]) == expected
