"""Near copies, repeated answers, variety and histograms of tables whose truth is known."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.masking.example import Example
from finetune_trainer.report.analysis import AnalysisSettings, analyze
from finetune_trainer.report.content import learn_boilerplate
from finetune_trainer.report.near_duplicates import MINIMA, banding, detection, find_near_copies
from finetune_trainer.report.statistics import Capacity, Histogram
from finetune_trainer.report.table import TokenTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.report_tables import END, FRAME, START, Turns, Words, analyze_turns, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT = st.lists(st.sampled_from([f"w{number}" for number in range(400)]), min_size=1, max_size=30).map(
    " ".join
)


def sentences(count: int, seed: int, size: int = 30, prefix: str = "word") -> list[str]:
    """Return `count` random texts that have next to nothing in common."""
    numbers = np.random.default_rng(seed).integers(0, 50_000, (count, size))
    return [" ".join(f"{prefix}{number}" for number in line) for line in numbers]


def single_turns(count: int, seed: int) -> list[Turns]:
    return [[pair] for pair in zip(sentences(count, seed), sentences(count, seed + 1), strict=True)]


def with_a_changed_word(text: str, place: int) -> str:
    words = text.split(" ")
    words[place] = "changed"
    return " ".join(words)


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


def test_a_long_system_prompt_that_all_rows_share_makes_no_near_duplicates(tmp_path: Path) -> None:
    (system,) = sentences(1, 77, size=300)
    rows: list[Turns] = [
        [(f"what is {a} plus {b}", f"{a + b}")] for a, b in itertools.product(range(12), range(12))
    ]
    assert analyze_turns(tmp_path, rows, system=system).statistics.near_duplicates.rows == 0


def test_a_long_instruction_that_prompts_begin_with_makes_no_near_duplicates(tmp_path: Path) -> None:
    """As where a template knows no control token between system prompt and user text."""
    (instruction,) = sentences(1, 77, size=100)
    prompts = sentences(60, 3, size=12)
    rows: list[Turns] = [
        [(f"{instruction} {prompt}", "yes" if number % 2 else "no")] for number, prompt in enumerate(prompts)
    ]
    assert analyze_turns(tmp_path, rows).statistics.near_duplicates.rows == 0


def test_instructions_that_part_after_a_common_beginning_make_no_near_duplicates(tmp_path: Path) -> None:
    common, *branches = (text for size in (30, 80, 80) for text in sentences(1, size + 7, size=size))
    branches[1] = " ".join(f"other{word}" for word in branches[1].split(" "))
    rows: list[Turns] = [
        [(f"{common} {branches[number % 2]} {prompt}", "fine")]
        for number, prompt in enumerate(sentences(80, 3, size=8))
    ]
    found = analyze_turns(tmp_path, rows).statistics
    assert found.near_duplicates.rows == 0
    assert found.prompts.variety is not None
    assert found.prompts.variety > 0.9


def test_an_unrolled_row_is_one_row(tmp_path: Path) -> None:
    """Its examples repeat each other's history, which is no repetition of rows."""
    words = Words()
    rows = []
    for (first,), (second,) in zip(single_turns(40, 1), single_turns(40, 5), strict=True):
        rows.append([words.example([first]), words.example([first, second])])
    path = write_table(tmp_path / "training.arrow", rows)
    validation = write_table(tmp_path / "validation.arrow", [[words.example([("a", "b")])]])
    settings = AnalysisSettings((DatasetReport(rows=40, kept=40),), {START, END}, frame=FRAME)
    statistics = analyze(path, validation, words.decode, settings).statistics
    assert (statistics.training_rows, statistics.training_examples) == (40, 80)
    assert statistics.near_duplicates.rows == 0


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
def test_rows_without_a_common_word_are_never_near(
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
    # Without a sample nothing counts as common to all rows: what is compared is the rows' whole text.
    shape = learn_boilerplate([training, validation], np.empty(0, np.int64), words.decode, {START, END})
    found = find_near_copies(training, validation, shape, threshold, folder, lambda _: None)
    return [int(place) for place in found.duplicate_of]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    bands, length = banding(threshold)
    assert bands * length <= MINIMA
    assert detection(threshold, bands, length) >= 0.99 or (bands, length) == (MINIMA, 1)


def test_the_share_of_similar_rows_found_is_as_stated(tmp_path: Path) -> None:
    """Pairs of 60 words of which 3 differ: Jaccard index 0.73 to 0.85, all of them above a threshold of 0.7."""
    chance = np.random.default_rng(4)
    rows: list[Turns] = []
    for text in sentences(300, 11, size=60):
        words = text.split(" ")
        for place in chance.choice(60, 3, replace=False):
            words[place] = f"new{chance.integers(10**6)}"
        rows += [[(text, "fine")], [(" ".join(words), "fine")]]
    found = analyze_turns(tmp_path, rows, thresholds=Thresholds(near_duplicate_similarity=0.7))
    assert found.statistics.near_duplicates.rows >= 0.97 * 300


def test_answers_that_repeat_are_counted_with_the_most_frequent_first(tmp_path: Path) -> None:
    prompts = sentences(60, 5)
    answers = ["yes it is"] * 30 + ["no"] * 20 + [f"answer {number}" for number in range(10)]
    found = analyze_turns(
        tmp_path, [[pair] for pair in zip(prompts, answers, strict=True)]
    ).statistics.answers
    assert (found.rows, found.distinct, found.repeated) == (60, 12, 50)
    assert [(answer.count, answer.text) for answer in found.most_frequent] == [(30, "yes it is"), (20, "no")]


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


def test_languages_are_told_by_the_answers(tmp_path: Path) -> None:
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


@given(values=st.lists(st.integers(0, 200_000), min_size=1, max_size=300))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    histogram = Histogram.of(np.asarray(values))
    assert sum(histogram.counts) == len(values)
    assert len(histogram.edges) == len(histogram.counts) + 1 <= 60
    assert list(histogram.edges) == sorted(set(histogram.edges))
    assert (histogram.total, histogram.maximum) == (sum(values), max(values))
    for start, end, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        assert count == sum(start <= value < end for value in values)


def test_capacity_is_bits_over_bits() -> None:
    assert Capacity(supervised_tokens=2_000_000, trainable_parameters=500_000).ratio == pytest.approx(2.0)


def test_equal_tables_give_equal_results(tmp_path: Path) -> None:
    rows = single_turns(80, 2)
    assert analyze_turns(tmp_path, rows) == analyze_turns(tmp_path, rows)


def test_a_single_row_can_be_analysed(tmp_path: Path) -> None:
    analysis = analyze_turns(tmp_path, [[("hello there", "hi")]])
    assert analysis.statistics.prompts.variety is None
    assert [warning.code for warning in analysis.warnings] == ["FewRows"]
    assert analysis.summary().near_duplicates == 0


def test_scratch_files_are_gone_and_progress_reaches_its_total(tmp_path: Path) -> None:
    words = Words()
    rows = [[words.example(turns)] for turns in single_turns(30, 1)]
    training = write_table(tmp_path / "training.arrow", rows)
    validation = write_table(tmp_path / "validation.arrow", rows[:2])
    seen: list[tuple[int, int]] = []
    settings = AnalysisSettings((DatasetReport(rows=30, kept=30),), {START, END})
    analyze(training, validation, words.decode, settings, lambda done, total: seen.append((done, total)))
    assert {path.name for path in tmp_path.iterdir()} == {"training.arrow", "validation.arrow"}
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)


def test_a_table_of_long_and_empty_parts_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Several batches, an example longer than a part, prompts of control tokens alone."""
    examples = [Example([START, 5, END, 7, END], [-100, -100, -100, 7, END]) for _ in range(1500)]
    examples[700] = Example([3] * 8_100_000, [-100] * 8_099_999 + [3])
    examples[701] = Example([START, END, 9], [-100, -100, 9])
    path = write_table(tmp_path / "t.arrow", [[example] for example in examples])
    table = TokenTable(path)
    assert (table.rows, table.examples) == (1500, 1500)
    assert [table.parts()[0][0], table.parts()[-1][1]] == [0, 1500]
    for place in (0, 700, 701, 1499):
        assert table.ids(place).tolist() == examples[place].input_ids
        assert table.labels(place).tolist() == examples[place].labels
