"""Where a base model comes from: its small files at once, its weight files one by one."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.digests import sampled_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Config, tokenizer, templates and papers: what belongs beside the weights wherever the model goes.
SMALL_FILES = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class ModelSource(Protocol):
    """A base model whose weight files are fetched, used and released one after the other."""

    @property
    def commit(self) -> str | None:
        """Commit of the repository; None where there is none."""

    def identity(self) -> dict[str, Any]:
        """Say which bytes this is; equal identities give equal results."""

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and other small files, present here."""

    def weight_files(self) -> list[str]:
        """Names of the weight files in a fixed order."""

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Make a weight file present here; `on_bytes` hears of bytes done and in all."""

    def release(self, name: str) -> None:
        """Say that a weight file is not needed again; deletes it only if it was downloaded."""


class DirectoryModel:
    """A model folder. Its files are the user's and are only read."""

    commit: str | None = None

    def __init__(self, folder: Path) -> None:
        """Raise StageError(ModelNotFound) without the folder, InvalidModel where a part of it is missing."""
        if not folder.is_dir():
            raise StageError(
                Reason.MODEL_NOT_FOUND,
                f"model.source must name a folder, found {'a file' if folder.exists() else 'nothing'} "
                f"at {folder}; check claim and path",
            )
        self._folder = folder
        self._names = sorted(path.name for path in folder.iterdir() if path.is_file())
        self._weights = weight_files(self._names, lambda name: (folder / name).read_bytes())

    def identity(self) -> dict[str, Any]:
        """Names, sizes, modification times and samples of the weights: a changed file is another model.

        Times alone do not tell two fine-tunes of one base apart where an archive set them all to one value.
        """
        try:
            status = {name: (self._folder / name).stat() for name in self._names}
            samples = {name: sampled_digest(self._folder / name) for name in self._weights}
        except OSError as error:
            raise StageError(
                Reason.INVALID_MODEL,
                f"the model folder must be readable, found: {error.strerror or type(error).__name__}; "
                "check the files' permissions and the volume",
            ) from error
        return {
            "kind": "Directory",
            "files": {name: [entry.st_size, entry.st_mtime_ns] for name, entry in status.items()},
            "samples": samples,
        }

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and other small files."""
        return [self._folder / name for name in self._names if is_small_file(name)]

    def weight_files(self) -> list[str]:
        """Names of the weight files, sorted."""
        return self._weights

    def path(self, name: str) -> Path:
        """Where a file of the model is."""
        return self._folder / name

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Return the file's path; nothing is copied."""
        path = self.path(name)
        size = path.stat().st_size
        on_bytes(size, size)
        return path

    def release(self, name: str) -> None:
        """Do nothing: the file is the user's."""


def is_small_file(name: str) -> bool:
    """Whether a file of this name belongs to the model's config, tokenizer or papers."""
    return any(fnmatch(name, pattern) for pattern in SMALL_FILES)


def weight_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Find the safetensors files that make up the model among a folder's `names`.

    `read` returns a small file's bytes. Raises StageError(InvalidModel) naming what is missing, and
    UnsupportedModel where the weights are pickles only.
    """
    present = set(names)
    if "config.json" not in present:
        raise StageError(
            Reason.INVALID_MODEL,
            "the model folder must hold config.json, found "
            + (f"only {', '.join(sorted(present)[:5])}" if present else "no files")
            + "; point model.source at the folder that holds it",
        )
    if INDEX_FILE in present:
        wanted = _indexed_files(read(INDEX_FILE))
    elif SINGLE_FILE in present:
        wanted = [SINGLE_FILE]
    elif any(fnmatch(name, pattern) for name in present for pattern in _PICKLES):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the model's weights must be safetensors files, found pickle files only; "
            "pickles can run code when loaded: convert them to safetensors",
        )
    elif any(name.endswith(".gguf") for name in present):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the base must be in 16 or 32 bits, found a checkpoint quantised already: GGUF files only; "
            "name the original model",
        )
    else:
        raise StageError(
            Reason.INVALID_MODEL, f"the model folder must hold {SINGLE_FILE} or {INDEX_FILE}, found neither"
        )
    missing = [name for name in wanted if name not in present]
    if missing:
        raise StageError(
            Reason.INVALID_MODEL,
            f"every weight file that {INDEX_FILE} names must be there, missing: {', '.join(missing[:5])}",
        )
    return wanted


def _indexed_files(index: bytes) -> list[str]:
    try:
        files = sorted({str(name) for name in json.loads(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            Reason.INVALID_MODEL, f"{INDEX_FILE} must be JSON with a `weight_map`, found: {error}"
        ) from error
    for name in files:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise StageError(
                Reason.INVALID_MODEL, f"{INDEX_FILE} must name safetensors files beside it, found {name!r}"
            )
    return files
