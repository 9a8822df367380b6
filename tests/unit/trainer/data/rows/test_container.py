from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.rows.reader import read_rows
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason, StageError

from tests.support.containers import COMPRESSIONS, CONTAINERS
from tests.support.foreign_files import FOREIGN_FILES
from tests.support.row_files import Outcome, fault, read


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[INFO] started\n{"n": 1}\n{"n": 2}', [(RowReason.INVALID_JSON, "column 2"), {"n": 1}, {"n": 2}]),
        (b'[1]\n{"n": 1}', [(RowReason.NOT_AN_OBJECT, "line"), {"n": 1}]),
        (b'a, b\n{"n": 1}', [(RowReason.INVALID_JSON, "column 1"), {"n": 1}]),
        (b'{"n": 1\n{"n": 2}\n{"n": 3}', [(RowReason.INVALID_JSON, "column 8"), {"n": 2}, {"n": 3}]),
        (b'{"n": 1}{"n": 2} {"n": 3}', [{"n": 1}, {"n": 2}, {"n": 3}]),
        (b'{"n": 1}{"n": 2}\n{"n": 3}{"n": 4}', [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]),
        (b'{"n": 1}{"n": 2}\n{"n": 3}\n{"n": 4}', [(RowReason.INVALID_JSON, "column 9"), {"n": 3}, {"n": 4}]),
        (b'{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        (b'{"data": [1]}', [{"data": [1]}]),
        (b'{"data": [{"n": 1}]}\n{"data": []}', [{"data": [{"n": 1}]}, {"data": []}]),
        (b'{"data": [{"n": 1}, {"n": 2}]}', [{"n": 1}, {"n": 2}]),
        (b"[\n]", []),
        (b"", []),
        (b"\xef\xbb\xbf\n \r\n", []),
    ],
)
def test_the_first_lines_decide_the_container_of_a_file(
    tmp_path: Path, data: bytes, expected: list[Outcome]
) -> None:
    assert list(read(tmp_path, data).values()) == expected


_MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_ROW = {"[]": _MESSAGES}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([_MESSAGES], [_ROW]),
        (_MESSAGES, [_ROW]),
        ({"data": [_MESSAGES, _MESSAGES]}, [_ROW, _ROW]),
        ({"about": "x", "dialogs": [{"messages": _MESSAGES}]}, [{"messages": _MESSAGES}]),
        ({"conversations": [{"conversations": []}]}, [{"conversations": []}]),
        ({"features": [{"name": "x"}], "rows": [{"row": {"prompt": "q"}}]}, [{"row": {"prompt": "q"}}]),
        (
            {"documents": [{"text": "x"}], "messages": _MESSAGES},
            [{"documents": [{"text": "x"}], "messages": _MESSAGES}],
        ),
        ({"id": 1, "turns": _MESSAGES}, [{"id": 1, "turns": _MESSAGES}]),
        ({"messages": _MESSAGES}, [{"messages": _MESSAGES}]),
        ({"messages": [{"speaker": "x", "text": "y"}]}, [{"messages": [{"speaker": "x", "text": "y"}]}]),
    ],
)
def test_a_document_holds_rows_as_objects_or_as_lists_of_messages(
    tmp_path: Path, document: Any, expected: list[Outcome]
) -> None:
    assert list(read(tmp_path, json.dumps(document).encode()).values()) == expected


def test_a_first_line_longer_than_the_first_bytes_is_a_row(tmp_path: Path) -> None:
    row = {"documents": [{"text": "x" * 2_000_000}], "messages": _MESSAGES}
    data = json.dumps(row).encode() + b'\n{"n": 2}'
    assert list(read(tmp_path, data).values()) == [row, {"n": 2}]


def test_lines_that_are_lists_of_messages_are_rows(tmp_path: Path) -> None:
    line = json.dumps(_MESSAGES).encode()
    assert list(read(tmp_path, b"\n".join([line, b"[]", line])).values()) == [
        _ROW, (RowReason.NOT_AN_OBJECT, "line"), _ROW,
    ]  # fmt: skip


def test_an_array_that_does_not_end_is_read_up_to_its_end(tmp_path: Path) -> None:
    assert (
        "line 1, column 10: must be a comma or the end of the array" in fault(tmp_path, b'[{"n": 1}').message
    )


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_a_file_without_rows_is_named_once_before_any_row(
    tmp_path: Path, name: str, compression: str
) -> None:
    make, said = FOREIGN_FILES[name]
    path = tmp_path / "dataset"
    path.write_bytes(COMPRESSIONS[compression](make()))
    with pytest.raises(StageError) as caught:
        next(read_rows([path]))
    assert caught.value.reason is Reason.MALFORMED_DATASET
    plain = compression == "plain"
    assert (said if plain else said.partition(":")[0]) in caught.value.message
    assert plain or f" inside {compression}: " in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("container", ["lines", "array", "csv", "parquet"])
def test_texts_about_other_kinds_do_not_make_a_file_foreign(tmp_path: Path, container: str) -> None:
    texts = [
        "%PDF-1.7",
        "<!doctype html>",
        "version https://git-lfs.github.com",
        "import os",
        "NaN",
        "# Title",
        "a: b",
    ]
    rows = [{"prompt": text, "completion": f"\n{text}\n"} for text in texts]
    assert list(read(tmp_path, CONTAINERS[container](rows)).values()) == rows
