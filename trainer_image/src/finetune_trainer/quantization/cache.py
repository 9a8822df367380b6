"""The cache of quantized base models that jobs share. Complete entries appear by a rename, without any lock.

An entry is a folder named by its key, with `base/`, `model/` and `manifest.json`. The manifest has the size and digest
of every file and is checked before each use. Each job builds in its own folder `.KEY.WRITER.partial`, whose name its
workspace remembers. The first job that finishes renames its folder; the others then use that entry. An unfinished
folder is removed after a day without changes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.digests import parts_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

MANIFEST = "manifest.json"
PARTS = ("base", "model")
LEFTOVER_SECONDS = 24 * 3600
_LEFTOVERS = (".*.partial", ".*.damaged")
_TRIES = 3  # to publish, while others publish and remove the same entry
_log = logging.getLogger(__name__)


def write_manifest(folder: Path, inputs: str, result: dict[str, Any], threads: Executor) -> None:
    """Mark `folder` as complete: write its inputs' digest, `result`, and size and digest of each file."""
    files = {
        name: {"bytes": path.stat().st_size, "digest": parts_digest(path, threads)}
        for name, path in _files(folder).items()
    }
    write_json_atomically(folder / MANIFEST, {"inputs": inputs, "result": result, "files": files})


def read_manifest(folder: Path, inputs: str) -> dict[str, Any] | None:
    """Return the `result` of a folder that is complete for these `inputs`, else None. It reads only the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("inputs") != inputs:
        return None
    result = manifest.get("result")
    return result if isinstance(result, dict) else None


class ModelCache:
    """The entries in `folder`. Several jobs, also of other users, may write to it or only read it."""

    def __init__(self, folder: Path, threads: Executor) -> None:
        self._folder = folder.absolute()
        self._threads = threads

    def find(self, key: str, inputs: str) -> Path | None:
        """Return the entry if all its files have the sizes and digests that its manifest names, else None."""
        entry = self._folder / key
        try:
            if not entry.is_dir():
                return None
        except OSError as error:
            _log.warning("model cache: it cannot be read and is not used: %s", error.strerror)
            return None
        fault = self._fault(entry, inputs)
        if fault is None:
            return entry
        _log.warning("model cache: entry %s is damaged and not used: %s", key, fault)
        return None

    def open_partial(self, key: str, memory: Path) -> Path:
        """Return this job's folder for building the entry; after a restart it is the earlier folder.

        `memory` is a file of the workspace that keeps the name. Raises OSError if the cache cannot be written.
        """
        self.remove_leftovers(time.time())
        try:
            name = str(json.loads(memory.read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            name = ""
        if not name.startswith(f".{key}.") or "/" in name:
            name = f".{key}.{secrets.token_hex(8)}.partial"
            write_json_atomically(memory, {"folder": name})
        partial = self._folder / name
        partial.mkdir(parents=True, exist_ok=True)
        os.utime(partial)
        return partial

    def publish(self, partial: Path, key: str, inputs: str) -> Path:
        """Rename a complete folder to its key, or remove it if another job was first; return the entry.

        Raises OSError if the cache cannot be written.
        """
        entry = self._folder / key
        _let_others_read(partial)
        for _ in range(_TRIES):
            try:
                partial.rename(entry)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
            else:
                return entry
            if self.find(key, inputs) is not None:
                shutil.rmtree(partial, ignore_errors=True)
                return entry
            aside = self._folder / f".{key}.{secrets.token_hex(8)}.damaged"
            try:
                entry.rename(aside)
            except FileNotFoundError:
                continue  # another job has renamed it
            shutil.rmtree(aside, ignore_errors=True)
        raise OSError(errno.EBUSY, "other jobs kept replacing the entry")

    @staticmethod
    def discard(partial: Path) -> None:
        """Remove a folder that `open_partial` returned."""
        shutil.rmtree(partial, ignore_errors=True)

    def remove_leftovers(self, now: float) -> None:
        """Remove unfinished folders of ended jobs after LEFTOVER_SECONDS without changes."""
        try:
            leftovers = [path for pattern in _LEFTOVERS for path in self._folder.glob(pattern)]
        except OSError:
            return
        for leftover in leftovers:
            if now - _last_change(leftover) > LEFTOVER_SECONDS:
                _log.info("model cache: removing %s, an unfinished folder of an ended job", leftover.name)
                shutil.rmtree(leftover, ignore_errors=True)

    def _fault(self, entry: Path, inputs: str) -> str | None:
        """Describe the first fault of the entry's files; None if there is none."""
        if read_manifest(entry, inputs) is None:
            return f"{MANIFEST} is missing or belongs to other inputs"
        try:
            expected = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))["files"]
            found = _files(entry)
            if found.keys() != expected.keys():
                return f"its files differ from {MANIFEST}: {sorted(found.keys() ^ expected.keys())[:3]}"
            for name, path in found.items():
                if path.stat().st_size != expected[name]["bytes"]:
                    return f"{name} has {path.stat().st_size} bytes instead of {expected[name]['bytes']}"
            for name, path in found.items():
                if parts_digest(path, self._threads) != expected[name]["digest"]:
                    return f"{name} has another digest"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return None


def keep_alive(partial: Path) -> Callable[[], None]:
    """Return a function that marks a folder as in use, at most once a minute, for long downloads."""
    last = time.monotonic()

    def touch() -> None:
        nonlocal last
        if time.monotonic() - last > 60:
            last = time.monotonic()
            os.utime(partial)

    return touch


def _files(folder: Path) -> dict[str, Path]:
    """All files of an entry's two folders by path relative to the entry."""
    return {
        str(path.relative_to(folder)): path
        for part in PARTS
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def _last_change(folder: Path) -> float:
    """Return the newest modification time in the folder; the current time if it is being removed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()


def _let_others_read(folder: Path) -> None:
    """Make the entry readable for pods of other users, also under a strict umask."""
    for path in (folder, *folder.rglob("*")):
        # Some network file systems have no modes: everybody may read, or the mount decides.
        with suppress(OSError):
            path.chmod(0o755 if path.is_dir() else 0o644)
