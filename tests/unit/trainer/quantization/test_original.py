"""Sources are real folders; one that is downloaded is a folder whose files may be moved away."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.original import KeptModel, read_original
from finetune_trainer.sources.model import DirectoryModel

from tests.support.tiny_models import write_tiny_model

DIGEST = "sha256:" + "1" * 64
FILES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class Download(DirectoryModel):
    """A source that fetches into a folder of its own and deletes what is released, as the hub's does."""

    def __init__(self, folder: Path, downloads: Path) -> None:
        super().__init__(folder)
        self.downloads = downloads
        self.fetches: list[str] = []
        downloads.mkdir(exist_ok=True)

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        target = self.downloads / name
        on_bytes(0, None)
        if not target.exists():
            self.fetches.append(name)
            shutil.copyfile(self.path(name), target)
        return target

    def release(self, name: str) -> None:
        (self.downloads / name).unlink(missing_ok=True)


def ignore(_done: int, _total: int | None) -> None:
    """Ignore progress."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model's folder with two weight files; their content does not matter here."""
    folder = write_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", FILES, strict=True))})
    )
    for name in FILES:
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def test_downloaded_files_are_moved_after_their_use_and_fetched_once(model: Path, tmp_path: Path) -> None:
    source = Download(model, tmp_path / "downloads")
    kept = KeptModel(source, tmp_path / "original")
    for name in FILES:
        assert kept.fetch(name, ignore).parent == source.downloads
        kept.release(name)
        assert not (source.downloads / name).exists()
        assert kept.fetch(name, ignore) == tmp_path / "original" / name
    kept.keep_all(DIGEST, ignore)
    assert source.fetches == FILES
    for name in FILES:
        assert (tmp_path / "original" / name).read_bytes() == (model / name).read_bytes()
    assert read_original(tmp_path / "original", DIGEST).startswith("sha256:")


def test_files_that_a_cache_made_unnecessary_are_fetched(model: Path, tmp_path: Path) -> None:
    source = Download(model, tmp_path / "downloads")
    KeptModel(source, tmp_path / "original").keep_all(DIGEST, ignore)
    assert source.fetches == FILES
    assert list(source.downloads.iterdir()) == []


def test_a_restart_keeps_what_is_there(model: Path, tmp_path: Path) -> None:
    """The first process stopped after the first file, and after it fetched the second one."""
    first = KeptModel(Download(model, tmp_path / "downloads"), tmp_path / "original")
    first.fetch(FILES[0], ignore)
    first.release(FILES[0])
    first.fetch(FILES[1], ignore)
    source = Download(model, tmp_path / "downloads")
    kept = KeptModel(source, tmp_path / "original")
    kept.release(FILES[1])
    assert (source.downloads / FILES[1]).exists(), "a file that is not kept yet must not be lost"
    kept.keep_all(DIGEST, ignore)
    assert source.fetches == []
    digest = read_original(tmp_path / "original", DIGEST)
    KeptModel(source, tmp_path / "original").keep_all(DIGEST, ignore)
    assert read_original(tmp_path / "original", DIGEST) == digest


def test_files_of_the_users_folder_are_linked_and_stay(model: Path, tmp_path: Path) -> None:
    KeptModel(DirectoryModel(model), tmp_path / "original").keep_all(DIGEST, ignore)
    for name in FILES:
        assert (tmp_path / "original" / name).samefile(model / name)


def test_files_on_another_volume_are_copied(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_paths: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    KeptModel(DirectoryModel(model), tmp_path / "original").keep_all(DIGEST, ignore)
    for name in FILES:
        assert (tmp_path / "original" / name).read_bytes() == (model / name).read_bytes()
        assert not (tmp_path / "original" / name).samefile(model / name)


@pytest.mark.parametrize("change", ["digest", "size", "missing", "manifest"])
def test_other_files_than_those_of_the_base_are_a_mismatch(model: Path, tmp_path: Path, change: str) -> None:
    original = tmp_path / "original"
    KeptModel(Download(model, tmp_path / "downloads"), original).keep_all(DIGEST, ignore)
    if change == "size":
        (original / FILES[0]).write_bytes(b"short")
    if change == "missing":
        (original / FILES[0]).unlink()
    if change == "manifest":
        (original / "manifest.json").write_text("[]")
    with pytest.raises(StageError, match="must hold the original weights") as caught:
        read_original(original, "sha256:other" if change == "digest" else DIGEST)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
