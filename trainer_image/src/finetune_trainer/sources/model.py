"""Sources of base models: small files come at once, weight files one by one."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.digests import sampled_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Config, tokenizer, templates, license and documentation: every copy of the model includes them.
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
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model*"


class ModelSource(Protocol):
    """A base model whose weight files are fetched, used and released one after the other."""

    @property
    def commit(self) -> str | None:
        """Commit of the repository; None if there is none."""

    def identity(self) -> dict[str, Any]:
        """Return the identity of the model's bytes; equal identities give equal results."""

    def small_files(self) -> list[Path]:
        """Return the local paths of config, tokenizer and other small files."""

    def weight_files(self) -> list[str]:
        """Names of the weight files in a fixed order."""

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Return the local path of a weight file; `on_bytes` receives the bytes done and the total."""

    def release(self, name: str) -> None:
        """Give up a weight file that is not needed again; deletes it only if it was downloaded."""


class DirectoryModel:
    """A model folder. Its files belong to the user and are only read."""

    commit: str | None = None

    def __init__(self, folder: Path) -> None:
        """Open every file that will be used, so that a missing permission shows at once.

        Raises StageError(ModelNotFound) if the folder is missing, ModelAccessDenied if it cannot be read, and
        InvalidModel if a part of the model is missing.
        """
        self._folder = folder
        with _reading(folder):
            if not folder.is_dir():
                raise StageError(
                    Reason.MODEL_NOT_FOUND,
                    f"model.source must name a folder, found {'a file' if folder.exists() else 'nothing'} "
                    f"at {folder}; check claim and path",
                )
            self._names = sorted(path.name for path in folder.iterdir() if path.is_file())
            self._weights = weight_files(self._names, lambda name: (folder / name).read_bytes())
            for path in (*self.small_files(), *(folder / name for name in self._weights)):
                with path.open("rb"):
                    pass

    def identity(self) -> dict[str, Any]:
        """Return names, sizes, modification times and samples of the weights; a changed file makes another model.

        Times alone cannot distinguish two fine-tunes of one base if an archive set all of them to one value.
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
        """Return the path of a file of the model."""
        return self._folder / name

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Return the file's path; nothing is copied."""
        path = self.path(name)
        size = path.stat().st_size
        on_bytes(size, size)
        return path

    def release(self, name: str) -> None:
        """Do nothing: the file belongs to the user."""


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn a missing permission in this block into StageError(ModelAccessDenied)."""
    try:
        yield
    except PermissionError as error:
        groups = ", ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
        raise StageError(
            Reason.MODEL_ACCESS_DENIED,
            f"the pod's user must be able to read the model, found no permission on {error.filename or folder} for user "
            f"{os.geteuid()} with the groups {groups}; change the file's mode or owner",
        ) from error


def used_small_files(source: ModelSource) -> list[Path]:
    """Return the small files of a model without those that `ignored_files` names."""
    ignored = ignored_files(source)
    return [path for path in source.small_files() if path.name not in ignored]


def ignored_files(source: ModelSource) -> dict[str, str]:
    """Return the small files that do not belong to the model's weights, by name, each with the reason.

    transformers would follow an adapter's config to another model, and servers would follow a stale index to files that
    do not exist.
    """
    ignored = {}
    weights = source.weight_files()
    for path in source.small_files():
        if path.name == _ADAPTER_CONFIG:
            ignored[path.name] = "it describes an adapter, and the model has no adapter weights"
        elif path.name == INDEX_FILE and weights == [SINGLE_FILE] and _files_in(path.read_bytes()) != weights:
            ignored[path.name] = f"its files are missing, and {SINGLE_FILE} holds the whole model"
    return ignored


def is_small_file(name: str) -> bool:
    """Return whether a file of this name matches one of SMALL_FILES."""
    return any(fnmatch(name, pattern) for pattern in SMALL_FILES)


def weight_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Find the safetensors files that make up the model among a folder's `names`.

    `read` returns a small file's bytes. An index whose files are missing is stale if the whole model is in one file.
    Raises StageError(InvalidModel) with the missing files, or if there is an adapter too, and UnsupportedModel if the
    weights are pickles or GGUF files only.
    """
    present = set(names)
    adapter = next((name for name in sorted(present) if fnmatch(name, _ADAPTER_WEIGHTS)), None)
    if adapter is not None:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the model folder must hold one whole model, found an adapter ({adapter}); merge it into its base model first, "
            "or remove the adapter's files to train the base model",
        )
    if "config.json" not in present:
        raise StageError(
            Reason.INVALID_MODEL,
            "the model folder must hold config.json, found "
            + (f"only {', '.join(sorted(present)[:5])}" if present else "no files")
            + "; point model.source at the folder that holds it",
        )
    if INDEX_FILE in present and SINGLE_FILE in present:
        listed = _files_in(read(INDEX_FILE))
        wanted = listed if listed and present.issuperset(listed) else [SINGLE_FILE]
    elif INDEX_FILE in present:
        wanted = _indexed_files(read(INDEX_FILE))
    elif SINGLE_FILE in present:
        wanted = [SINGLE_FILE]
    elif any(fnmatch(name, pattern) for name in present for pattern in _PICKLES):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the model's weights must be safetensors files, found pickle files only; "
            "pickles can run code when they are loaded; convert them to safetensors",
        )
    elif any(name.endswith(".gguf") for name in present):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the base model must have 16-bit or 32-bit weights, found an already quantized checkpoint: GGUF files only; "
            "set model.source to the original model",
        )
    else:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the model folder must hold {SINGLE_FILE} or {INDEX_FILE}, found neither; "
            "point model.source at the folder with the weights",
        )
    missing = [name for name in wanted if name not in present]
    if missing:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the model must hold every weight file in {INDEX_FILE}, missing: {', '.join(missing[:5])}; "
            "add the missing files",
        )
    return wanted


def _files_in(index: bytes) -> list[str]:
    """Return the files that an index names; none if it cannot be read."""
    try:
        return _indexed_files(index)
    except StageError:
        return []


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
                Reason.INVALID_MODEL,
                f"{INDEX_FILE} must name safetensors files in its own folder, found {name!r}",
            )
    return files
