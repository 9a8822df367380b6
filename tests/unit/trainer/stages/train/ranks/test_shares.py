"""Rows of a step, shared out to ranks."""

from __future__ import annotations

import random

import pytest
from finetune_trainer.stages.train.ranks.shares import shares
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 4096), max_size=80), st.integers(1, 9))
def test_no_row_is_lost_or_doubled(lengths: list[int], ranks: int) -> None:
    found = shares(lengths, ranks)
    assert len(found) == ranks
    assert sorted(row for share in found for row in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in found)


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=80), st.integers(1, 9))
def test_no_rank_has_more_than_its_part_and_one_row(lengths: list[int], ranks: int) -> None:
    tokens = [sum(lengths[row] for row in share) for share in shares(lengths, ranks)]
    assert max(tokens) <= sum(lengths) / ranks + max(lengths)
    assert max(tokens) - min(tokens) <= max(lengths)


def test_a_rank_without_other_ranks_has_all_rows_in_their_order() -> None:
    assert shares([3, 9, 1], 1) == [[0, 1, 2]]


def test_equal_rows_are_shared_evenly() -> None:
    assert shares([5] * 8, 4) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_more_ranks_than_rows_leave_ranks_without_rows() -> None:
    assert shares([2, 7], 4) == [[1], [0], [], []]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_have_nearly_the_same_tokens_of_usual_steps(ranks: int) -> None:
    chance = random.Random(5)  # noqa: S311 -- test data
    for _ in range(50):
        lengths = [min(2048, int(chance.lognormvariate(5.5, 0.8)) + 8) for _ in range(8 * ranks)]
        tokens = [sum(lengths[row] for row in share) for share in shares(lengths, ranks)]
        assert max(tokens) <= 1.15 * sum(tokens) / ranks
