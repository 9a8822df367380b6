from __future__ import annotations

import pytest
from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.recording import MAXIMUM_ROWS, choose_positions, choose_rows


def examples(*lengths: int) -> list[Example]:
    return [Example([1] * length, [1] * length, row=row) for row, length in enumerate(lengths, start=1)]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ((1000, 1000, 1000, 48), [1, 2, 4]),
        ((3000, 2500), [2]),
        ((2048, 1), [1]),
    ],
)
def test_rows_fit_the_budget_together_or_the_shortest_is_taken(
    lengths: tuple[int, ...], rows: list[int]
) -> None:
    assert [example.row for example in choose_rows(examples(*lengths))] == rows


def test_there_are_at_most_16_rows() -> None:
    assert len(choose_rows(examples(*[2] * 40))) == MAXIMUM_ROWS


@pytest.mark.parametrize(
    ("supervised", "limit", "chosen"),
    [
        (range(10), 4, (0, 3, 6, 9)),
        (range(5, 8), 10, (5, 6, 7)),
        (range(5, 8), 1, (5,)),
        (range(5, 8), 0, ()),
        ((), 3, ()),
    ],
)
def test_positions_are_spread_from_the_first_to_the_last(
    supervised: range, limit: int, chosen: tuple[int, ...]
) -> None:
    assert choose_positions(supervised, limit) == chosen
