"""The tensors of a step, packed and padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.passes import Pass, Step, StepCollator
from finetune_trainer.stages.train.ranks.group import Ranks

_ROWS = [
    {"input_ids": [10, 11, 12], "labels": [IGNORED, IGNORED, 12]},
    {"input_ids": [20, 21, 22, 23], "labels": [20, IGNORED, 22, 23]},
    {"input_ids": [30], "labels": [30]},
]


def _step(kind: Any, budget: int = 8) -> Step:
    return StepCollator(Batching(kind, budget, 2))(_ROWS)


def _learned(one: Pass) -> list[tuple[int, int]]:
    """Return the ids of each predicting token and of the token that it predicts."""
    flat = one.input_ids.flatten()
    return [(int(flat[place]), int(target)) for place, target in zip(one.positions, one.targets, strict=True)]


def test_packed_rows_follow_one_another_and_their_positions_restart() -> None:
    (one,) = _step("Packed").passes
    assert one.input_ids.tolist() == [[20, 21, 22, 23, 10, 11, 12, 30]]
    assert one.position_ids is not None
    assert one.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert one.packed is not None
    assert one.packed.lengths == (4, 3, 1)
    assert one.packed.bounds.tolist() == [0, 4, 7, 8]
    assert one.packed.bounds.dtype == torch.int32


def test_padded_rows_end_in_padding() -> None:
    (one,) = _step("Grouped", 12).passes
    assert one.input_ids.tolist() == [[20, 21, 22, 23], [10, 11, 12, 0], [30, 0, 0, 0]]
    assert one.packed is None
    assert one.position_ids is None


@pytest.mark.parametrize("kind", ["Packed", "Grouped", "AsDrawn"])
def test_each_learned_token_is_predicted_by_the_one_before_it_in_its_own_row(kind: str) -> None:
    """Nothing predicts the first token of a row, so its label does not count."""
    step = _step(kind)
    pairs = [pair for one in step.passes for pair in _learned(one)]
    assert sorted(pairs) == [(11, 12), (21, 22), (22, 23)]
    assert (step.examples, step.learned, step.tokens) == (3, 3, 8)


def test_only_padding_makes_the_computed_tokens_more_than_the_real_ones() -> None:
    found = [_step(kind, 12).computed for kind in ("Packed", "Grouped", "AsDrawn")]
    assert found == [8, 12, 9]


def test_a_budget_splits_a_step_and_a_pass_without_labels_stays() -> None:
    step = _step("Packed", 4)
    assert [one.tokens for one in step.passes] == [4, 4]
    rows = [{"input_ids": [1, 2], "labels": [IGNORED, IGNORED]}]
    empty = StepCollator(Batching("Packed", 4, 2))(rows)
    assert empty.learned == 0
    assert len(empty.passes[0].targets) == 0


def test_every_tensor_of_a_pass_is_moved() -> None:
    """A tensor that stays behind would stop the GPU at the first use."""
    (one,) = _step("Packed").passes
    moved = one.moved(lambda value: value.to("meta"))
    assert moved.packed is not None
    assert moved.position_ids is not None
    tensors = (moved.input_ids, moved.positions, moved.targets, moved.packed.bounds, moved.position_ids)
    assert all(tensor.is_meta for tensor in tensors)
    assert not hasattr(_step("Packed"), "to"), "accelerate would move all passes at once"


class _Rank(Ranks):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("kind", ["Packed", "Grouped", "AsDrawn"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_each_row_of_a_step_once_and_know_the_counts_of_all(kind: Any, size: int) -> None:
    batching = Batching(kind, 8, 2)
    steps = [StepCollator(batching, _Rank(rank, size))(_ROWS) for rank in range(size)]
    pairs = [pair for step in steps for one in step.passes for pair in _learned(one)]
    assert sorted(pairs) == [(11, 12), (21, 22), (22, 23)]
    assert sum(one.tokens for step in steps for one in step.passes) == 8
    assert {(step.examples, step.learned, step.tokens) for step in steps} == {(3, 3, 8)}
    assert len({step.digest for step in steps}) == 1


def test_the_checksum_of_a_step_depends_on_the_order_and_the_labels_of_its_rows() -> None:
    collate = StepCollator(Batching("Packed", 8, 2), _Rank(0, 2))
    other = [{**_ROWS[0], "labels": [IGNORED, 11, 12]}, *_ROWS[1:]]
    assert len({collate(rows).digest for rows in (_ROWS, _ROWS[::-1], other)}) == 3


def test_a_rank_without_rows_has_a_pass_that_learns_nothing() -> None:
    found = StepCollator(Batching("Packed", 8, 2), _Rank(3, 4))(_ROWS)
    (one,) = found.passes
    assert one.input_ids.numel() == 1
    assert (one.tokens, len(one.targets), found.learned) == (0, 0, 3)


@pytest.mark.parametrize("kind", ["Packed", "Grouped", "AsDrawn"])
def test_ranks_that_share_weights_have_equally_many_passes(kind: Any) -> None:
    """The row of four tokens fills the pass of one rank, and the other has two rows that need a pass each."""
    rows = [_ROWS[1], {"input_ids": [40, 41], "labels": [IGNORED, 41]}, _ROWS[2]]
    batching = Batching(kind, 2, 1)
    free = [StepCollator(batching, _Rank(rank, 2))(rows) for rank in range(2)]
    even = [StepCollator(batching, _Rank(rank, 2), even=True)(rows) for rank in range(2)]
    assert {len(step.passes) for step in free} == {1, 2}
    assert {len(step.passes) for step in even} == {2}
    for one, other in zip(free, even, strict=True):
        assert (one.tokens, one.learned, one.digest) == (other.tokens, other.learned, other.digest)
        added = other.passes[len(one.passes) :]
        assert all((each.tokens, len(each.targets)) == (0, 0) for each in added)
