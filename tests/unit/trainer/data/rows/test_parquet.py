from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason

from tests.support.containers import parquet, zstd
from tests.support.row_files import conversations, fault, read


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PAR1 and nothing more", "complete Parquet file"),
        (parquet(conversations(50))[:-20], "complete Parquet file"),
        (zstd(parquet(conversations(50))[:-20]), "complete Parquet file"),
    ],
)
def test_an_incomplete_parquet_file_is_malformed(tmp_path: Path, data: bytes, said: str) -> None:
    error = fault(tmp_path, data)
    assert error.reason is Reason.MALFORMED_DATASET
    assert said in error.message


def test_parquet_columns_become_json(tmp_path: Path) -> None:
    """Null members of structs are left out, dates become text, NaN becomes null, images stay bytes."""
    table = pa.table(
        {
            "messages": pa.array(
                [
                    [
                        {"role": "user", "content": "x", "name": None},
                        {"role": "tool", "content": None, "name": "f"},
                    ]
                ],
                pa.large_list(
                    pa.struct({"role": pa.string(), "content": pa.large_string(), "name": pa.string()})
                ),
            ),
            "source": pa.array(["web"]).dictionary_encode(),
            "day": pa.array([20_000], pa.date32()),
            "score": [float("nan")],
            "old": [b"text"],
            "image": [b"\x89PNG"],
            "pairs": pa.array([[(7, 1)]], pa.map_(pa.int64(), pa.int64())),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read(tmp_path, sink.getvalue())[1] == {
        "messages": [{"role": "user", "content": "x"}, {"role": "tool", "name": "f"}],
        "source": "web",
        "day": "2024-10-04",
        "score": None,
        "old": "text",
        "image": b"\x89PNG",
        "pairs": {"7": 1},
    }


def test_parquet_text_that_is_not_utf8_rejects_only_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).cast(pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    assert list(read(tmp_path, sink.getvalue()).values()) == [
        {"text": "a"},
        (RowReason.INVALID_ENCODING, "text"),
        {"text": "c"},
    ]


def test_parquet_with_two_columns_of_one_name_is_malformed(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), sink)
    assert "two columns or members named 'prompt'" in fault(tmp_path, sink.getvalue()).message
