from __future__ import annotations

import pytest
from finetune_trainer.data.masking.alignment import (
    first_difference,
    shared_beginning,
    shared_despite_space,
    text_behind,
)


@pytest.mark.parametrize(
    ("prompt", "full", "behind"),
    [
        ("Q\nA:", "Q\nA: yes", " yes"),
        ("Q\nA:\n", "QA:\nyes", "yes"),
        ("Q\n\nA:", "Q\nA: yes", " yes"),
        ("Q\nA:\n", "Q\nA: yes", "yes"),
        ("Q\nA:\n\n", "Q\nA:\nyes", "yes"),
        ("Q\nA:\n", "Q\nA:\n\nyes", "\nyes"),
        ("Q\nA:", "Q\nB: yes", None),
        ("Q\nA: more", "Q\nA:", None),
        ("", "yes", "yes"),
        ("\n", "yes", "yes"),
    ],
)
def test_the_text_behind_a_prompt_is_found_despite_white_space(
    prompt: str, full: str, behind: str | None
) -> None:
    assert text_behind(prompt, full) == behind


def test_both_texts_are_shown_around_their_first_difference() -> None:
    served, written = first_difference("a" * 40 + "<think>", "a" * 40 + "yes", width=20)
    assert (served, written) == ("a" * 10 + "<think>", "a" * 10 + "yes")


def test_white_space_does_not_end_what_two_texts_share() -> None:
    assert shared_despite_space("Q\n A:<plan>", "Q A: yes") == len("Q\n A:")
    assert shared_beginning("Q\n A", "Q A") == 1
    assert shared_despite_space("same", "same") == shared_beginning("same", "same") == 4
