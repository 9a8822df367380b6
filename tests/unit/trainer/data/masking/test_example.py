from __future__ import annotations

from finetune_trainer.data.masking.example import IGNORED, Example


def test_learned_tokens_are_counted_and_their_positions_named() -> None:
    example = Example([9, 4, 5, 9, 6], [IGNORED, 4, 5, IGNORED, 6])
    assert example.supervised_tokens == 3
    assert example.supervised == (1, 2, 4)


def test_a_first_token_is_no_learned_position_because_nothing_predicts_it() -> None:
    assert Example([3, 4], [3, 4]).supervised == (1,)


def test_an_example_of_a_row_keeps_everything_else() -> None:
    example = Example([1, 2], [IGNORED, 2], dropped_turns=3)
    assert example.of_row(17) == Example([1, 2], [IGNORED, 2], 17, 3)
    assert example.row == 0
