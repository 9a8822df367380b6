"""Content codings that a server applies to a file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.content_encoding import coding_of, decode_beginning, decode_file
from finetune_trainer.sources.fetch_target import MODEL

ROWS = b'{"text": "one"}\n' * 50


@pytest.mark.parametrize(
    ("header", "coding"),
    [("", ""), ("identity", ""), ("aws-chunked", ""), ("GZIP", "gzip"), ("aws-chunked, x-gzip", "gzip")],
)
def test_known_codings_are_recognized(header: str, coding: str) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("header", ["br", "gzip, gzip", "deflate"])
def test_other_codings_make_the_dataset_unavailable(header: str) -> None:
    with pytest.raises(StageError) as caught:
        coding_of(header)
    assert caught.value.reason is Reason.DATASET_UNAVAILABLE


def test_a_models_file_has_the_models_reasons(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        coding_of("br", MODEL)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    path = tmp_path / "weights"
    path.write_bytes(gzip.compress(ROWS)[:-4])
    with pytest.raises(StageError) as caught:
        decode_file(path, lambda _: None, lambda _: None, MODEL)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_gzip_file_is_replaced_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(ROWS))
    beginnings: list[bytes] = []
    sizes: list[int] = []
    decode_file(path, beginnings.append, sizes.append)
    assert path.read_bytes() == ROWS
    assert beginnings == [ROWS]
    assert sizes[-1] == len(ROWS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_gzip_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(ROWS)
    decode_file(path, lambda _: None, lambda _: None)
    assert path.read_bytes() == ROWS


def test_a_truncated_gzip_file_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(ROWS)[:-4])
    with pytest.raises(StageError) as caught:
        decode_file(path, lambda _: None, lambda _: None)
    assert caught.value.reason is Reason.MALFORMED_DATASET


def test_the_beginning_of_an_error_body_is_bounded_and_decompressed() -> None:
    assert decode_beginning(ROWS, 10) == ROWS[:10]
    assert decode_beginning(gzip.compress(ROWS)[:-4], 10) == ROWS[:10]
    assert decode_beginning(b"\x1f\x8b broken", 10) == b""
