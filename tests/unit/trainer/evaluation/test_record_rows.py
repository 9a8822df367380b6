from __future__ import annotations

import pytest
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.evaluation.record_rows import (
    MAXIMUM_LENGTH,
    MAXIMUM_ROWS,
    MAXIMUM_TOKENS,
    choose_positions,
    choose_rows,
    cut,
)


def examples(*lengths: int) -> list[Example]:
    return [Example([1] * length, [1] * length, row=row) for row, length in enumerate(lengths, start=1)]


def losses(*nats: float) -> list[RowLoss]:
    return [RowLoss(row, value, 1) for row, value in enumerate(nats, start=1)]


@pytest.mark.parametrize(
    ("lengths", "changes", "rows"),
    [
        ((10, 10, 10), (1.0, -3.0, 2.0), [2, 3, 1]),
        ((10, 40), (1.0, 2.0), [1, 2]),
        # Rows 2 and 3 would pad row 1 beyond the budget together.
        ((400, 500, 100, 300), (4.0, 4.5, 0.5, 1.0), [1, 2]),
        ((9000,), (0.0,), [1]),
    ],
)
def test_rows_with_the_largest_effect_for_their_length_are_chosen(
    lengths: tuple[int, ...], changes: tuple[float, ...], rows: list[int]
) -> None:
    base, tuned = losses(*[5.0] * len(changes)), losses(*[5.0 + change for change in changes])
    chosen = choose_rows(examples(*lengths), base, tuned)
    assert [example.row for example in chosen] == rows
    assert len(chosen) * max(len(example.input_ids) for example in chosen) <= MAXIMUM_TOKENS


def test_there_are_at_most_16_rows() -> None:
    base = losses(*[1.0] * 40)
    assert len(choose_rows(examples(*[2] * 40), base, base)) == MAXIMUM_ROWS


@pytest.mark.parametrize(
    ("prompt", "answer", "first", "learned"),
    [
        (100, 400, 0, 400),
        (100, 5000, 0, MAXIMUM_LENGTH - 100),
        (5000, 5000, 5000 - MAXIMUM_LENGTH // 2, MAXIMUM_LENGTH // 2),
        (5000, 10, 5010 - MAXIMUM_LENGTH, 10),
    ],
)
def test_a_long_row_is_cut_around_its_first_learned_token(
    prompt: int, answer: int, first: int, learned: int
) -> None:
    ids = list(range(prompt + answer))
    found = cut(Example(ids, [IGNORED] * prompt + ids[prompt:], row=3))
    assert found.input_ids == ids[first : first + len(found.input_ids)]
    assert len(found.input_ids) == min(MAXIMUM_LENGTH, prompt + answer)
    assert found.supervised_tokens == learned
    assert [found.labels[place] for place in found.supervised] == [
        found.input_ids[place] for place in found.supervised
    ]
    assert found.row == 3


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
