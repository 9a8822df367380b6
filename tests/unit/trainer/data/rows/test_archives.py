from __future__ import annotations

import pytest
from finetune_trainer.data.rows.archives import is_tar, zip_kind

from tests.support.foreign_files import JSON_LINES, old_tar, tar_of, zip_of


def test_the_entries_of_a_zip_archive_are_named() -> None:
    kind = zip_kind(zip_of("a.jsonl", "folder/b.jsonl", "c", "d"))
    assert kind is not None
    assert kind.what == "a zip archive of 'a.jsonl', 'folder/b.jsonl', 'c', ..."


def test_a_zip_archive_that_is_cut_off_is_still_named() -> None:
    kind = zip_kind(zip_of("[Content_Types].xml", "xl/workbook.xml")[:60])
    assert kind is not None
    assert kind.what.startswith("an Office document")


def test_names_of_entries_are_shown_without_control_characters() -> None:
    kind = zip_kind(zip_of("a\nb\x1b[31m"))
    assert kind is not None
    assert "'a\\nb\\x1b[31m'" in kind.what


@pytest.mark.parametrize("data", [tar_of(), old_tar(), tar_of() + JSON_LINES])
def test_a_tar_archive_is_known_by_the_checksum_of_its_first_header(data: bytes) -> None:
    assert is_tar(data)
    damaged = bytearray(data)
    damaged[0] ^= 1
    assert not is_tar(bytes(damaged))


@pytest.mark.parametrize("data", [b"", JSON_LINES, bytes(1024), b"PK\x03"])
def test_other_bytes_are_no_archive(data: bytes) -> None:
    assert zip_kind(data) is None
    assert not is_tar(data)
