from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import pytest
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason

from tests.support.row_files import Outcome, fault, read


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[INFO] started\n{"n": 1}\n{"n": 2}', [(RowReason.INVALID_JSON, "column 2"), {"n": 1}, {"n": 2}]),
        (b'[1]\n{"n": 1}', [(RowReason.NOT_AN_OBJECT, "line"), {"n": 1}]),
        (b'a, b\n{"n": 1}', [(RowReason.INVALID_JSON, "column 1"), {"n": 1}]),
        (b'{"n": 1\n{"n": 2}\n{"n": 3}', [(RowReason.INVALID_JSON, "column 8"), {"n": 2}, {"n": 3}]),
        (b"not JSON", [(RowReason.INVALID_JSON, "column 1")]),
        (b'[{"n": 1}', [(RowReason.INVALID_JSON, "column 10")]),
        (b'{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        (b'{"data": [1]}', [{"data": [1]}]),
        (b'{"data": [{"n": 1}]}\n{"data": []}', [{"data": [{"n": 1}]}, {"data": []}]),
        (b'{"data": [{"n": 1}, {"n": 2}]}', [{"n": 1}, {"n": 2}]),
        (b"[\n]", []),
        (b"", []),
        (b"\xef\xbb\xbf\n \r\n", []),
        ('{"n": 1}\n'.encode("utf-16"), [(RowReason.INVALID_ENCODING, "byte 1")]),
        ('{"n": 1}\n'.encode("utf-16-be"), [(RowReason.INVALID_ENCODING, "byte 1")]),
        ('{"n": 1}\n'.encode("utf-32-le"), [(RowReason.INVALID_ENCODING, "byte 1")]),
    ],
)
def test_the_first_lines_decide_the_container_of_a_file(
    tmp_path: Path, data: bytes, expected: list[Outcome]
) -> None:
    assert list(read(tmp_path, data).values()) == expected


def _archive() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("dataset.jsonl", b'{"n": 1}')
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (pickle.dumps([{"messages": []}]), "pickle"),
        (_archive(), "zip archive"),
        (bytes(range(5, 256)), "binary data"),
        # The archive contains no time. Its bytes are part of the test's name, which every process must find again.
        (gzip.compress(gzip.compress(b'{"n": 1}', mtime=0), mtime=0), "compressed twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_a_file_of_another_kind_is_malformed_and_its_kind_is_named(
    tmp_path: Path, data: bytes, said: str
) -> None:
    error = fault(tmp_path, data)
    assert error.reason is Reason.MALFORMED_DATASET
    assert said in error.message
