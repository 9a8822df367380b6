"""The rows that both models answer."""

from __future__ import annotations

from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.evaluation.questions import (
    MAXIMUM_ANSWER,
    Question,
    answer_limit,
    choose_questions,
    last_answer,
)


def _example(row: int, prompt: int = 3, answer: int = 2) -> Example:
    ids = list(range(1, prompt + answer + 1))
    return Example(ids, [IGNORED] * prompt + ids[prompt:], row)


def test_the_last_answer_of_a_conversation_is_asked_with_all_earlier_turns() -> None:
    example = Example([1, 2, 3, 4, 5, 6, 7, 8], [IGNORED, IGNORED, 3, IGNORED, 5, 6, IGNORED, IGNORED], 9)
    assert last_answer(example) == Question(9, (1, 2, 3, 4), (5, 6))


def test_an_answer_at_the_beginning_keeps_one_token_of_prompt() -> None:
    assert last_answer(Example([1, 2, 3], [1, 2, 3], 1)) == Question(1, (1,), (2, 3))


def test_questions_are_spread_over_all_rows() -> None:
    examples = [_example(row) for row in range(100)]
    assert [question.row for question in choose_questions(examples, 4, None)] == [0, 25, 50, 75]
    assert len(choose_questions(examples, 1000, None)) == 100


def test_a_row_with_several_examples_is_asked_once() -> None:
    examples = [_example(1, prompt=3), _example(1, prompt=6), _example(2)]
    assert [(q.row, len(q.prompt)) for q in choose_questions(examples, 8, None)] == [(1, 6), (2, 3)]


def test_rows_that_are_too_long_for_the_limit_or_the_context_are_left_out() -> None:
    examples = [_example(1, answer=MAXIMUM_ANSWER + 1), _example(2, prompt=100), _example(3)]
    assert [question.row for question in choose_questions(examples, 8, 50)] == [3]
    assert [question.row for question in choose_questions(examples, 8, None)] == [2, 3]
    assert choose_questions([], 8, None) == []


def test_an_answer_may_be_a_quarter_longer_than_the_longest_reference() -> None:
    questions = [Question(1, (1,), (2,) * 8), Question(2, (1,), (2,) * 40)]
    assert answer_limit(questions) == 40 + 10 + 16
    assert answer_limit([Question(1, (1,), (2,) * MAXIMUM_ANSWER)]) == MAXIMUM_ANSWER
