from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.destinations.journal import UploadJournal


def test_a_recorded_file_is_known_by_digest_and_version_in_a_later_process(tmp_path: Path) -> None:
    path = tmp_path / "journals" / "bucket.json"
    UploadJournal(path, "s3://a/b").record("merged/a", "sha256:1", '"etag"')
    later = UploadJournal(path, "s3://a/b")
    assert later.holds("merged/a", "sha256:1", '"etag"')
    assert not later.holds("merged/a", "sha256:2", '"etag"')
    assert not later.holds("merged/a", "sha256:1", '"other"')
    assert not later.holds("merged/a", "sha256:1", None)
    assert not later.holds("merged/b", "sha256:1", '"etag"')


def test_a_journal_of_another_place_says_nothing(tmp_path: Path) -> None:
    UploadJournal(tmp_path / "j", "s3://a/b").record("merged/a", "sha256:1", '"etag"')
    assert not UploadJournal(tmp_path / "j", "s3://a/c").holds("merged/a", "sha256:1", '"etag"')


@pytest.mark.parametrize("text", ["", "[]", '{"place": "p"}', '{"place": "p", "files": 3}'])
def test_a_broken_journal_only_costs_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    journal = UploadJournal(tmp_path / "j", "p")
    assert not journal.holds("a", "sha256:1", "1")
    journal.record("a", "sha256:1", "1")
    assert UploadJournal(tmp_path / "j", "p").holds("a", "sha256:1", "1")


def test_a_journal_that_cannot_be_written_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    journal = UploadJournal(tmp_path / "file" / "j", "p")
    journal.begin("a", "sha256:1", "upload")
    assert journal.begun("a", "sha256:1") == "upload"
    journal.record("a", "sha256:1", "1")
    assert journal.holds("a", "sha256:1", "1")
    assert "another attempt sends them again" in caplog.text


def test_a_store_without_versions_leaves_no_record(tmp_path: Path) -> None:
    UploadJournal(tmp_path / "j", "p").record("a", "sha256:1", None)
    assert not (tmp_path / "j").exists()
