from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from finetune_trainer.data.dataset.tables import SCHEMA, ExampleTable, TableWriter, stream_examples
from finetune_trainer.data.masking.example import IGNORED, Example

if TYPE_CHECKING:
    from pathlib import Path

# More than two batches, with a row of two examples at the border of the first.
EXAMPLES = [Example([row, 7, 8], [IGNORED, 7, 8], row) for row in range(1, 2500)]
EXAMPLES[1024] = Example([5] * 40, [IGNORED] * 39 + [5], 1024)


def written(path: Path, examples: list[Example]) -> TableWriter:
    writer = TableWriter(path)
    for example in examples:
        writer.add(example)
    writer.finish()
    return writer


def test_streaming_returns_the_written_examples_in_order(tmp_path: Path) -> None:
    written(tmp_path / "t.arrow", EXAMPLES)
    assert list(stream_examples(tmp_path / "t.arrow")) == EXAMPLES


def test_a_mapped_table_gives_first_examples_and_longest(tmp_path: Path) -> None:
    written(tmp_path / "t.arrow", EXAMPLES)
    table = ExampleTable(tmp_path / "t.arrow")
    assert len(table) == len(EXAMPLES)
    assert table.longest() == 40
    assert table.lengths().tolist() == [len(example.input_ids) for example in EXAMPLES]
    assert table.learned().tolist() == [example.supervised_tokens for example in EXAMPLES]
    table.release()
    assert table.first(1026) == EXAMPLES[:1026]
    assert table.first(10_000) == EXAMPLES
    assert table.arrow.schema == SCHEMA


def test_an_empty_table_has_no_examples_and_length_zero(tmp_path: Path) -> None:
    written(tmp_path / "t.arrow", [])
    table = ExampleTable(tmp_path / "t.arrow")
    assert (len(table), table.longest(), table.first(3)) == (0, 0, [])
    assert (len(table.lengths()), len(table.learned())) == (0, 0)
    assert not list(stream_examples(tmp_path / "t.arrow"))


@pytest.mark.parametrize("content", [b"", b"not an Arrow file at all"])
def test_a_file_that_is_no_table_is_an_error_that_callers_can_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty file|Arrow"):
        ExampleTable(tmp_path / "t.arrow")
    with pytest.raises(FileNotFoundError):
        ExampleTable(tmp_path / "missing.arrow")


def test_a_table_with_other_columns_is_not_read_as_examples(tmp_path: Path) -> None:
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("row", pa.int64())])) as writer,
    ):
        writer.write_table(pa.table({"row": [1]}))
    with pytest.raises(pa.ArrowInvalid, match=r"[Ss]chema"):
        _ = ExampleTable(tmp_path / "t.arrow").arrow


def test_a_table_appears_under_its_name_only_when_finished(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t.arrow")
    writer.add(EXAMPLES[0])
    assert not (tmp_path / "t.arrow").exists()
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["t.arrow"]


def test_an_abandoned_table_leaves_no_file(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t.arrow")
    writer.add(EXAMPLES[0])
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_the_digest_depends_on_ids_labels_order_and_table_name_alone(tmp_path: Path) -> None:
    def digest(folder: str, examples: list[Example], name: str = "training") -> str:
        return written(tmp_path / folder / f"{name}.arrow", examples).digest.text()

    one, two = Example([1, 2], [IGNORED, 2], 1), Example([1, 3], [IGNORED, 3], 2)
    base = digest("a", [one, two])
    assert digest("b", [one.of_row(8), two.of_row(9)]) == base
    others = [
        digest("c", [two, one]),
        digest("d", [one, two], "validation"),
        digest("e", [one, Example([1, 3], [IGNORED, IGNORED], 2)]),
        digest("f", [Example([1, 2, 1, 3], [IGNORED, 2, IGNORED, 3], 1)]),
    ]
    assert len({base, *others}) == 5


def test_a_writer_counts_the_tokens_of_its_examples(tmp_path: Path) -> None:
    writer = written(tmp_path / "t.arrow", EXAMPLES)
    assert writer.tokens == sum(len(example.input_ids) for example in EXAMPLES)
    assert writer.tokens == int(ExampleTable(tmp_path / "t.arrow").lengths().sum())
