from __future__ import annotations

from pathlib import Path

from finetune_trainer.data.dataset.tables import TableWriter
from finetune_trainer.data.dataset.token_use import TokenUse, token_use
from finetune_trainer.data.masking.example import IGNORED, Example

X = IGNORED


def table(path: Path, *examples: tuple[int, list[int], list[int]]) -> Path:
    writer = TableWriter(path)
    for row, ids, labels in examples:
        writer.add(Example(ids, labels, row))
    writer.finish()
    return path


def test_the_last_label_of_every_answer_is_an_end_and_the_commonest_comes_first(tmp_path: Path) -> None:
    """The second example has two answers, the first of which ends with another token."""
    one = table(
        tmp_path / "training.arrow",
        (1, [5, 6, 7, 2], [X, X, 7, 2]),
        (2, [5, 6, 3, 8, 9, 2], [X, 6, 3, X, 9, 2]),
    )
    two = table(tmp_path / "validation.arrow", (1, [4, 2, 4], [X, 2, X]))
    assert token_use((one, two)).ends == (2, 3)


def test_answers_of_neighboring_rows_are_two_answers(tmp_path: Path) -> None:
    path = table(tmp_path / "training.arrow", (1, [7, 2], [7, 2]), (2, [8, 3], [8, 3]))
    assert token_use((path,)).ends == (2, 3)


def test_the_largest_id_has_its_row_also_in_a_later_batch(tmp_path: Path) -> None:
    rows = [(number, [1, 2], [X, 2]) for number in range(1, 2000)]
    path = table(tmp_path / "training.arrow", *rows, (2000, [1, 90, 2], [X, X, 2]), (2001, [90, 2], [X, 2]))
    assert token_use((path,)) == TokenUse(90, 2000, (2,))


def test_a_table_without_examples_has_no_token(tmp_path: Path) -> None:
    assert token_use((table(tmp_path / "empty.arrow"),)) == TokenUse(-1, 0, ())
