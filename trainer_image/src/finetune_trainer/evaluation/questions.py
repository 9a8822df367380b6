"""Chooses the held-out rows that base and tuned model answer by generating text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.data.masking.example import IGNORED, Example

if TYPE_CHECKING:
    from collections.abc import Sequence

MAXIMUM_ANSWER = 512
"""Tokens of the longest reference answer; a row with a longer one is not asked."""
_SPARE = 16


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, and the reference answer's ids with its end token; `row` is that of the source.

    A sample prompt has no reference, and its row is 0.
    """

    row: int
    prompt: tuple[int, ...]
    reference: tuple[int, ...] = ()


def choose_questions(examples: Sequence[Example], limit: int, context: int | None) -> list[Question]:
    """Choose at most `limit` rows, spread evenly over the examples, with the last answer of each.

    The prompt has all earlier turns, as in serving. Only one example of a row is asked, because the answers of a
    conversation are not independent. A row is left out if its reference has more than `MAXIMUM_ANSWER` tokens, or if
    prompt and answer may exceed the model's `context` (tokens; None if it is not known).
    """
    found = {question.row: question for question in map(last_answer, examples) if _fits(question, context)}
    questions = list(found.values())
    if len(questions) <= limit:
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]


def last_answer(example: Example) -> Question:
    """Return the last run of supervised tokens as the reference, and everything before it as the prompt."""
    end = example.supervised[-1] + 1
    start = end - 1
    while start > 1 and example.labels[start - 1] != IGNORED:
        start -= 1
    return Question(example.row, tuple(example.input_ids[:start]), tuple(example.input_ids[start:end]))


def answer_limit(questions: Sequence[Question]) -> int:
    """Return the tokens that an answer may have: those of the longest reference, and a quarter more.

    A longer answer is no exact one. A model that does not stop must not take much longer than one that does.
    """
    longest = max((len(question.reference) for question in questions), default=0)
    return min(MAXIMUM_ANSWER, longest + longest // 4 + _SPARE)


def _fits(question: Question, context: int | None) -> bool:
    if len(question.reference) > MAXIMUM_ANSWER:
        return False
    return context is None or len(question.prompt) + answer_limit([question]) <= context
