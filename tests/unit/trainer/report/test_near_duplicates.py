"""In tables with known pairs of near-duplicates, exactly these pairs are found."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.report.content import learn_boilerplate
from finetune_trainer.report.near_duplicates import MINIMA, banding, detection, find_near_copies
from finetune_trainer.report.table import TokenTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.report_tables import (
    END,
    START,
    Turns,
    Words,
    analyze_turns,
    sentences,
    single_turns,
    with_a_changed_word,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


TEXT = st.lists(st.sampled_from([f"w{number}" for number in range(400)]), min_size=1, max_size=30).map(
    " ".join
)


def test_rows_with_a_word_changed_are_near_duplicates_and_others_are_not(tmp_path: Path) -> None:
    rows = single_turns(120, 1)
    for number in range(30):
        ((prompt, answer),) = rows[number]
        rows.append([(with_a_changed_word(prompt, number), answer)])
    near = analyze_turns(tmp_path, rows).statistics.near_duplicates
    assert (near.rows, near.of) == (30, 150)
    assert [(pair.row, pair.other) for pair in near.examples] == [(121 + n, 1 + n) for n in range(10)]
    assert all(0.8 <= pair.similarity < 1 for pair in near.examples)


def test_a_near_copy_of_a_validation_row_is_leakage(tmp_path: Path) -> None:
    training, validation = single_turns(100, 1), single_turns(20, 9)
    for number in range(5):
        ((prompt, answer),) = validation[number]
        training.append([(with_a_changed_word(prompt, 3), answer)])
    leaked = analyze_turns(tmp_path, training, validation).statistics.leaked
    assert (leaked.rows, leaked.of) == (5, 20)
    assert [(pair.row, pair.other) for pair in leaked.examples] == [(1 + n, 101 + n) for n in range(5)]


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12, unique=True), data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_exact_copy_is_always_a_near_duplicate(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(rows) - 1))
    threshold = data.draw(st.floats(0.05, 1.0))
    with TemporaryDirectory() as folder:
        original = near_originals(Path(folder), [[row] for row in [*rows, rows[chosen]]], threshold)
    assert original[-1] >= 0


@given(
    left=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6, unique=True),
    right=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_rows_without_a_common_word_are_never_near_duplicates(
    left: list[tuple[str, str]], right: list[tuple[str, str]]
) -> None:
    other = [(prompt.replace("w", "v"), answer.replace("w", "v")) for prompt, answer in right]
    with TemporaryDirectory() as folder:
        original = near_originals(Path(folder), [[row] for row in [*left, *other]], 0.05)
    assert all(place < 0 or (place < len(left)) == (row < len(left)) for row, place in enumerate(original))


def near_originals(folder: Path, rows: Sequence[Turns], threshold: float) -> list[int]:
    words = Words()
    training = TokenTable(write_table(folder / "t.arrow", [[words.example(turns)] for turns in rows]))
    validation = TokenTable(write_table(folder / "v.arrow", []))
    # Without a sample, no text counts as common to all rows, so the whole text of rows is compared.
    shape = learn_boilerplate([training, validation], np.empty(0, np.int64), words.decode, {START, END})
    found = find_near_copies(training, validation, shape, threshold, folder, lambda _: None)
    return [int(place) for place in found.duplicate_of]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    bands, length = banding(threshold)
    assert bands * length <= MINIMA
    assert detection(threshold, bands, length) >= 0.99 or (bands, length) == (MINIMA, 1)


def test_at_least_97_percent_of_similar_rows_are_found(tmp_path: Path) -> None:
    """The pairs have 60 words, of which 3 differ. All Jaccard indexes are 0.73 to 0.85, above the threshold of 0.7."""
    chance = np.random.default_rng(4)
    rows: list[Turns] = []
    for text in sentences(300, 11, size=60):
        words = text.split(" ")
        for place in chance.choice(60, 3, replace=False):
            words[place] = f"new{chance.integers(10**6)}"
        rows += [[(text, "fine")], [(" ".join(words), "fine")]]
    found = analyze_turns(tmp_path, rows, thresholds=Thresholds(near_duplicate_similarity=0.7))
    assert found.statistics.near_duplicates.rows >= 0.97 * 300
