"""The report recognizes the languages of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.report.languages import language_mix, language_of

from tests.support.report_tables import (
    Turns,
    analyze_turns,
)

if TYPE_CHECKING:
    pass


def test_languages_come_from_the_answers(tmp_path: Path) -> None:
    english = "the weather is nice today and we are going for a walk in the park with the dog number"
    german = (
        "das Wetter ist heute schön und wir gehen mit dem Hund im Park spazieren und nicht nach Hause Nummer"
    )
    rows: list[Turns] = [[(f"q {number}", f"{english} {number}")] for number in range(75)]
    rows += [[(f"q {number}", f"{german} {number}")] for number in range(25)]
    rows += [[(f"q {number}", f"{number} {number + 1}")] for number in range(20)]
    mix = analyze_turns(tmp_path, rows).statistics.languages
    assert [(item.code, item.rows) for item in mix.languages] == [("en", 75), ("de", 25)]
    assert (mix.sampled, mix.determined) == (120, 100)


@pytest.mark.parametrize("text", ["", "42", "{'a': [1, 2]}", "x = f(y) + 3;"])
def test_numbers_and_code_have_no_language(text: str) -> None:
    assert language_of(text) is None


def test_the_prompt_decides_if_the_answer_has_no_language() -> None:
    mix = language_mix([("42", "Wie viele Tage hat der Monat Mai in diesem Jahr?"), ("7", "8")])
    assert [(item.code, item.fraction) for item in mix.languages] == [("de", 1.0)]
    assert (mix.sampled, mix.determined) == (2, 1)
