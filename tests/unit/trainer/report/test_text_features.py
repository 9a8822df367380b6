"""The features of texts are words, word pairs and trigrams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from finetune_trainer.report.text_features import mean_nearest_similarity, words_and_pairs

from tests.support.report_tables import (
    Turns,
    analyze_turns,
    sentences,
    single_turns,
)

if TYPE_CHECKING:
    pass


def test_variety_is_high_for_different_prompts_and_low_for_one_phrase(tmp_path: Path) -> None:
    varied = analyze_turns(tmp_path, single_turns(100, 3)).statistics.prompts
    phrase: list[Turns] = [[(f"Tell me about topic {number}", f"it is {number}")] for number in range(100)]
    same = analyze_turns(tmp_path, phrase).statistics.prompts
    one: list[Turns] = [[("Tell me more", text)] for text in sentences(100, 3)]
    repeated = analyze_turns(tmp_path, one).statistics.prompts
    assert varied.variety is not None
    assert same.variety is not None
    assert varied.variety > 0.9
    assert same.variety < 0.3
    assert (repeated.variety, repeated.distinct) == (0.0, 1)


def test_case_and_punctuation_do_not_change_the_features() -> None:
    assert words_and_pairs("Hello, World!").tolist() == words_and_pairs("hello world").tolist()


@pytest.mark.parametrize(
    ("text", "words"), [("one two three", 3), ("日本語", 3), ("日本 word", 3), ("?!", 0), ("", 0)]
)
def test_a_text_has_its_words_and_the_pairs_of_neighbors(text: str, words: int) -> None:
    assert words_and_pairs(text).size == words + max(0, words - 1)


def test_the_order_of_words_shows_in_the_pairs_only() -> None:
    shared = np.intersect1d(words_and_pairs("one two three"), words_and_pairs("three one two"))
    assert shared.size == 4


def test_similarity_is_one_for_equal_sets_and_zero_without_a_common_member() -> None:
    same, other, empty = (np.array(values, np.uint64) for values in ([1, 2], [3, 4], []))
    assert mean_nearest_similarity([same, same]) == pytest.approx(1.0)
    assert mean_nearest_similarity([same, other]) == 0.0
    assert mean_nearest_similarity([empty, empty]) == 1.0
    assert mean_nearest_similarity([same, empty]) == 0.0
