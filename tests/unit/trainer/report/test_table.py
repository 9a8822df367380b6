"""Reading a table gives the rows that were written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.masking.example import Example
from finetune_trainer.report.analysis import AnalysisSettings, analyze
from finetune_trainer.report.table import TokenTable

from tests.support.report_tables import (
    END,
    FRAME,
    START,
    Words,
    single_turns,
    write_table,
)

if TYPE_CHECKING:
    pass


def test_an_unrolled_row_is_one_row(tmp_path: Path) -> None:
    """Its examples share their history, which does not count as a repeated row."""
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


def test_a_table_of_long_and_empty_parts_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The table has several batches, an example longer than a part, and prompts with only control tokens."""
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
