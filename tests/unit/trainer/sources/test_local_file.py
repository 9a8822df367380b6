"""Datasets on a mounted volume."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.local_file import require_file


def test_a_readable_file_of_the_largest_size_passes(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"12345")
    assert require_file(path, 5) == path


def test_a_larger_file_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"123456")
    with pytest.raises(StageError, match="at most 5 bytes, found 6") as caught:
        require_file(path, 5)
    assert caught.value.reason is Reason.DATASET_TOO_LARGE


@pytest.mark.parametrize(("name", "found"), [("", "a folder"), ("missing", "nothing")])
def test_a_path_without_a_file_is_not_found(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(StageError, match=f"found {found}") as caught:
        require_file(tmp_path / name, 5)
    assert caught.value.reason is Reason.DATASET_NOT_FOUND


def test_a_file_without_permission_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can read every file, so the test replaces the system's response."""

    def deny(_path: Path, *_mode: str) -> None:
        raise PermissionError

    path = tmp_path / "rows"
    path.touch()
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(StageError, match="no permission") as caught:
        require_file(path, 5)
    assert caught.value.reason is Reason.DATASET_ACCESS_DENIED
