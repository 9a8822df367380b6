"""Keeps the base's own weight files in the workspace, for a merge into them or a comparison with them.

Each downloaded file is moved after its quantization; a file of the user's folder is linked or copied. A restart keeps
what is there.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from finetune_trainer.cpu import available_cpus
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.workspace.digests import weights_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.sources.model import ModelSource

_MANIFEST = "manifest.json"


class KeptModel:
    """A model source whose weight files stay in `folder` when they are released."""

    def __init__(self, source: ModelSource, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._fetched: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def commit(self) -> str | None:
        """Commit of the repository; None if there is none."""
        return self._source.commit

    def identity(self) -> dict[str, Any]:
        """Return the identity of the model's bytes."""
        return self._source.identity()

    def small_files(self) -> list[Path]:
        """Return the local paths of config, tokenizer and other small files."""
        return self._source.small_files()

    def weight_files(self) -> list[str]:
        """Names of the weight files in a fixed order."""
        return self._source.weight_files()

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Return the kept file, or fetch it."""
        kept = self._folder / name
        if kept.is_file():
            size = kept.stat().st_size
            on_bytes(size, size)
            return kept
        self._fetched[name] = self._source.fetch(name, on_bytes)
        return self._fetched[name]

    def release(self, name: str) -> None:
        """Keep a file that was fetched. What an earlier process fetched is kept by `keep_all`."""
        path = self._fetched.pop(name, None)
        if path is not None:
            self._keep(name, path)

    def keep_all(self, model_digest: str, on_bytes: Callable[[int, int | None], None]) -> None:
        """Fetch and keep the files that are not there yet, then record their digests for the checkpoint of this digest.

        Raises StageError as the source does.
        """
        names = self.weight_files()
        sizes = {name: _size(self._folder / name) for name in names}
        if _recorded(self._folder, model_digest, sizes) is not None:
            return
        for name in names:
            self.fetch(name, on_bytes)
            self.release(name)
        with ThreadPoolExecutor(available_cpus()) as threads:
            digest = weights_digest(self._folder, names, threads)
        sizes = {name: _size(self._folder / name) for name in names}
        write_json_atomically(
            self._folder / _MANIFEST, {"quantizedDigest": model_digest, "digest": digest, "bytes": sizes}
        )

    def _keep(self, name: str, path: Path) -> None:
        kept = self._folder / name
        if isinstance(self._source, DirectoryModel):
            _link_or_copy(path, kept)
        else:
            _move(path, kept)
        self._source.release(name)


def read_original(folder: Path, model_digest: str) -> str:
    """Return the digest of the kept weight files of the base that was quantized to the checkpoint of this digest.

    Raises StageError(QuantizationMismatch) if PREPARE kept none for it.
    """
    digest = find_original(folder, model_digest)
    if digest is None:
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            "the workspace must hold the original weights of the base that was trained on, found none or others; create "
            "the job again, or set output.mergeOnto to TrainedWeights",
        )
    return digest


def find_original(folder: Path, model_digest: str) -> str | None:
    """Return what `read_original` returns, or None if PREPARE kept no such files."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {str(name): _size(folder / name) for name in manifest["bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _recorded(folder, model_digest, sizes)


def _recorded(folder: Path, model_digest: str, sizes: dict[str, int | None]) -> str | None:
    """Return the recorded digest if it is of this checkpoint and of files with these sizes."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        matches = manifest["quantizedDigest"] == model_digest and manifest["bytes"] == sizes
        return str(manifest["digest"]) if matches else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _link_or_copy(path: Path, kept: Path) -> None:
    try:
        os.link(path.resolve(), kept)
    except OSError:
        # Another volume, or a file system without links.
        _copy(path, kept)


def _move(path: Path, kept: Path) -> None:
    try:
        path.replace(kept)
    except OSError:
        _copy(path, kept)


def _copy(path: Path, kept: Path) -> None:
    partial = kept.with_name(f".{kept.name}.partial")
    shutil.copyfile(path, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(kept)
