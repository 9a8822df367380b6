"""Texts of rows are the answers and the prompts without the frame of the template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from finetune_trainer.report.content import learn_boilerplate
from finetune_trainer.report.prompts import Frame, RowTexts, TextReader, supervised_counts
from finetune_trainer.report.table import TokenTable

from tests.support.report_tables import (
    END,
    FRAME,
    START,
    Words,
    analyze_turns,
    sentences,
    write_table,
)

if TYPE_CHECKING:
    pass


def test_answers_that_repeat_are_counted_with_the_most_frequent_first(tmp_path: Path) -> None:
    prompts = sentences(60, 5)
    answers = ["yes it is"] * 30 + ["no"] * 20 + [f"answer {number}" for number in range(10)]
    found = analyze_turns(
        tmp_path, [[pair] for pair in zip(prompts, answers, strict=True)]
    ).statistics.answers
    assert (found.rows, found.distinct, found.repeated) == (60, 12, 50)
    assert [(answer.count, answer.text) for answer in found.most_frequent] == [(30, "yes it is"), (20, "no")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user: hello", "hello"),
        ("er: hello [/", "hello"),
        ("hello", "hello"),
        ("user:", ""),
        ("", ""),
    ],
)
def test_a_frame_is_removed_even_if_only_a_part_of_it_is_there(text: str, expected: str) -> None:
    assert Frame("user:", "[/INST]").strip(text) == expected


def test_answers_of_several_turns_are_joined_without_control_tokens(tmp_path: Path) -> None:
    words = Words()
    path = write_table(tmp_path / "t.arrow", [[words.example([("a b", "one"), ("c d", "two three")])]])
    table = TokenTable(path)
    boilerplate = learn_boilerplate([table], np.zeros(1, np.int64), words.decode, {START, END})
    reader = TextReader(table, boilerplate, words.decode, {START, END}, FRAME)
    assert reader.row(0) == RowTexts("a b", "one\ntwo three")
    assert list(reader.prompts(0, 1)) == [(1, ["a b"]), (1, ["c d"])]
    assert supervised_counts(table.view, 0, 1).tolist() == [5]
