from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.stages.merge.journal import FileRecord, Journal
from finetune_trainer.workspace.digests import file_digest


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Journal, Path]:
    """Return a journal and a file that it recorded."""
    journal = Journal(tmp_path / "journal" / "merged", "sha256:1")
    journal.open(tmp_path / "merged")
    path = tmp_path / "merged" / "a.safetensors"
    path.write_bytes(b"weights")
    journal.write(path.name, FileRecord(7, file_digest(path)))
    return journal, path


def test_a_recorded_file_is_found(finished: tuple[Journal, Path]) -> None:
    journal, path = finished
    assert journal.find(path) == FileRecord(7, file_digest(path))


@pytest.mark.parametrize("content", [b"weight", b"weighty", None])
def test_a_file_that_changed_or_is_gone_is_not_found(
    finished: tuple[Journal, Path], content: bytes | None
) -> None:
    journal, path = finished
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert journal.find(path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": "sha256:1", "bytes": 7, "other": 3}'])
def test_a_broken_record_counts_for_nothing(
    finished: tuple[Journal, Path], tmp_path: Path, text: str
) -> None:
    journal, path = finished
    (tmp_path / "journal" / "merged" / f"{path.name}.json").write_text(text)
    assert journal.find(path) is None


def test_files_of_other_inputs_and_all_others_are_removed(finished: tuple[Journal, Path]) -> None:
    journal, path = finished
    folder = path.parent
    (folder / ".b.safetensors.tmp").write_bytes(b"half")
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    journal.open(folder)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    other = Journal(folder.parent / "journal" / "merged", "sha256:2")
    assert other.find(path) is None
    other.open(folder)
    assert list(folder.iterdir()) == []
