from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from finetune_trainer.data.dataset.row_source import open_source
from finetune_trainer.errors import Reason, StageError

from tests.support.containers import CONTAINERS
from tests.support.foreign_files import JSON_LINES, PAIRS, zip_of


def fault(paths: list[Path], wanted: str = "Auto") -> StageError:
    with pytest.raises(StageError) as caught:
        open_source(paths, wanted)
    return caught.value


def written(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"part-{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("wanted", ["Auto", "Messages"])
@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ([b""], "an empty file"),
        ([gzip.compress(b"", mtime=0)], "an empty file"),
        ([b" \n\n\t"], "only white space"),
        ([b"\xef\xbb\xbf"], "only white space"),
        ([b" " * 2_000_000], "only white space"),
        ([b"[]"], "an empty list"),
        ([b'{"data": []}'], "an empty list"),
        ([b"prompt,completion\n"], "the header of a table without rows"),
        ([CONTAINERS["parquet"](PAIRS)[:0], b"[ ]"], "an empty file and an empty list"),
        ([], "no file"),
    ],
)
def test_a_dataset_without_rows_says_what_there_is_instead(
    tmp_path: Path, wanted: str, contents: list[bytes], found: str
) -> None:
    error = fault(written(tmp_path, *contents), wanted)
    assert error.reason is Reason.INVALID_DATASET
    assert error.message == f"the dataset must have rows, found {found}; check what was uploaded"


def test_an_empty_file_among_others_does_no_harm(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, b"", JSON_LINES, b"\n"), "Auto")
    assert len(list(source.rows())) == 12


@pytest.mark.parametrize("wanted", ["Auto", "Messages"])
def test_the_fault_of_the_first_bytes_is_not_lost(tmp_path: Path, wanted: str) -> None:
    cut = CONTAINERS["parquet"](PAIRS)[:-20]
    error = fault(written(tmp_path, cut), wanted)
    assert error.reason is Reason.MALFORMED_DATASET
    assert "part-0 must be a complete Parquet file" in error.message


def test_a_later_file_of_another_kind_is_found_before_the_first_is_read(tmp_path: Path) -> None:
    error = fault(written(tmp_path, JSON_LINES, JSON_LINES, zip_of("rows.jsonl")))
    assert "part-2 must be JSONL" in error.message
    assert "found a zip archive of 'rows.jsonl'" in error.message


def test_a_fault_further_on_does_not_hide_the_format(tmp_path: Path) -> None:
    rows = json.dumps(PAIRS).encode()
    source = open_source(written(tmp_path, rows[:-30]), "Auto")
    assert source.format == "PromptCompletion"
    assert source.size == len(rows) - 30


def test_the_first_conversations_leave_out_unreadable_rows(tmp_path: Path) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    rows = f'{good}\nno JSON\n{{"messages": []}}\n{good}'
    source = open_source(written(tmp_path, rows.encode()), "Auto")
    found = list(source.first_conversations("Keep"))
    assert [conversation.messages[0]["content"] for conversation in found] == ["q", "q"]
