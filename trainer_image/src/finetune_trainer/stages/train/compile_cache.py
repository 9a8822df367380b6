"""Keeps what Triton and Inductor have compiled, so that the next run on the same kind of GPU need not compile it again.

The compilers write into a folder of this process. It is filled from one archive at the start, and the archive is replaced
at the end of the stage. So no other job can change a file that is in use, and a broken archive is as good as none.

Compiled code is code. The archive of a claim is used by all jobs that may write to the claim, and by nobody else. It must
belong to the user of this process, and others must not be able to write to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VARIABLE = "FINETUNE_COMPILE_CACHE"
"""Names the folder of the archives in the claim of the model cache. Without it, the workspace has them."""
FOLDER = "compiled"
LARGEST = 256 << 20
"""Bytes of an archive, and of its files, at most."""
MOST_FILES = 20_000
KEPT = 8
"""Archives of a folder: one for each kind of GPU and each set of versions. The oldest ones go."""
LEFTOVER_SECONDS = 24 * 3600
_DIGEST_BYTES = 32
"""An archive begins with the SHA-256 of the rest: damaged code could end the process."""
_SUFFIX = ".kernels"
_GROUP = "__grp__"
"""Prefix of a list in which Triton finds the files of a kernel."""
_FOLDERS = {"triton": "TRITON_CACHE_DIR", "inductor": "TORCHINDUCTOR_CACHE_DIR"}
_log = logging.getLogger(__name__)


def archive_name(capability: tuple[int, int], versions: Mapping[str, str]) -> str:
    """Return the name of the archive for GPUs of this `capability`. No driver decides: compiled code is for a GPU."""
    parts = [f"sm{capability[0]}{capability[1]}", *(f"{name}{found}" for name, found in versions.items())]
    return "-".join("".join(c if c.isalnum() or c in ".+" else "_" for c in part) for part in parts) + _SUFFIX


def writable_folder(shared: str | None, own: Path) -> Path:
    """Return the folder of the archives: the `shared` one if it is named and can be written, else the job's `own`."""
    if not shared:
        return own
    folder = Path(shared)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.info("compiled kernels stay in the workspace: %s: %s", shared, error.strerror)
        return own
    return folder if os.access(folder, os.W_OK | os.X_OK) else own


@contextmanager
def compile_cache(folder: Path, name: str | None) -> Iterator[CompileCache | None]:
    """Let the compilers of this process use the archive `name` in `folder`, and keep what they add at the end.

    Without a name nothing happens: the device compiles nothing. No error of the cache reaches the caller.
    """
    if name is None:
        yield None
        return
    local = Path(tempfile.mkdtemp(prefix="finetune-compiled-"))
    before = {variable: os.environ.get(variable) for variable in _FOLDERS.values()}
    cache = CompileCache(folder / name, local)
    try:
        cache.restore()
        os.environ.update({variable: str(local / kind) for kind, variable in _FOLDERS.items()})
        yield cache
    finally:
        try:
            cache.save()
        finally:
            for variable, value in before.items():
                if value is None:
                    os.environ.pop(variable, None)
                else:
                    os.environ[variable] = value
            shutil.rmtree(local, ignore_errors=True)


class CompileCache:
    """The archive of one kind of GPU, and the folder `local` in which this process compiles."""

    def __init__(self, archive: Path, local: Path) -> None:
        self._archive = archive
        self._local = local
        self._restored: frozenset[str] = frozenset()

    def restore(self) -> int:
        """Fill the local folder from the archive and return the number of its files; 0 if it cannot be used."""
        try:
            self._unpack()
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            _log.warning("the cache of compiled kernels %s is not used: %s", self._archive.name, error)
            # Half of an archive is no use: a compiler would have to trust it.
            for kind in _FOLDERS:
                shutil.rmtree(self._local / kind, ignore_errors=True)
            return 0
        self._restored = frozenset(self._files())
        _log.info("%d compiled files from %s", len(self._restored), self._archive.name)
        return len(self._restored)

    def save(self) -> bool:
        """Replace the archive if something was compiled; return whether that was done."""
        partial = self._archive.with_name(f".{self._archive.name}.{secrets.token_hex(8)}.partial")
        try:
            files = self._files()
            if files.keys() <= self._restored:
                return False
            _require_bounds(len(files), sum(path.stat().st_size for path in files.values()))
            packed = self._local / "packed"
            with tarfile.open(packed, mode="w") as archive:
                for name, path in sorted(files.items()):
                    archive.add(path, name, recursive=False)
            self._archive.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with packed.open("rb") as source, os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.file_digest(source, "sha256").digest())
                source.seek(0)
                shutil.copyfileobj(source, file)
            partial.replace(self._archive)
            prune(self._archive.parent, time.time())
        except (OSError, ValueError, tarfile.TarError) as error:
            _log.warning("compiled kernels are not kept in %s: %s", self._archive.name, error)
            return False
        finally:
            # It is there only if it could not replace the archive.
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return True

    def _unpack(self) -> None:
        """Raise OSError, ValueError or TarError if the archive is not whole, or not this user's."""
        descriptor = os.open(self._archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > 2 * LARGEST:
                raise ValueError(f"it must be a file of at most {2 * LARGEST} bytes")
            # Volumes give a file to the group of the pod, so the group may write.
            if found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
                raise ValueError("it must belong to this user, and nobody else may write to it")
            digest = file.read(_DIGEST_BYTES)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise ValueError("its content must have the digest at its beginning")
            file.seek(_DIGEST_BYTES)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                self._extract(archive)
        for group in self._local.rglob(f"{_GROUP}*"):
            _relocate(group)

    def _extract(self, archive: tarfile.TarFile) -> None:
        total = 0
        for count, member in enumerate(archive, start=1):
            total += member.size
            kind = member.name.split("/", maxsplit=1)[0]
            if not member.isreg() or kind not in _FOLDERS or ".." in member.name.split("/"):
                raise ValueError(f"it may have files of {' and '.join(_FOLDERS)}, found {member.name[:80]}")
            _require_bounds(count, total)
            archive.extract(member, self._local, filter="data")

    def _files(self) -> dict[str, Path]:
        """Return the files of the local folder by their names in the archive."""
        return {
            path.relative_to(self._local).as_posix(): path
            for kind in _FOLDERS
            for path in (self._local / kind).rglob("*")
            if path.is_file() and not path.is_symlink() and path.suffix != ".lock"
        }


def _relocate(group: Path) -> None:
    """Let a list of Triton name the files beside it: it has the absolute paths of the process that compiled them."""
    document = json.loads(group.read_text(encoding="utf-8"))
    names = document.get("child_paths") if isinstance(document, dict) else None
    if not isinstance(names, dict):
        raise ValueError(f"{group.name[:80]} must list files")  # noqa: TRY004 -- the archive is broken
    moved = {name: str(group.with_name(Path(name).name)) for name in names}
    group.write_text(json.dumps({**document, "child_paths": moved}), encoding="utf-8")


def _require_bounds(files: int, total: int) -> None:
    if total > LARGEST or files > MOST_FILES:
        raise ValueError(
            f"it may have {MOST_FILES} files and {LARGEST} bytes at most, found {files} files and {total} bytes"
        )


def prune(folder: Path, now: float) -> None:
    """Keep the newest archives of `folder`, and remove what writers have left behind that ended before."""
    with suppress(OSError):
        archives = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.lstat().st_mtime, reverse=True)
        leftovers = [
            path for path in folder.glob(".*.partial") if now - path.lstat().st_mtime > LEFTOVER_SECONDS
        ]
        for path in (*archives[KEPT:], *leftovers):
            path.unlink(missing_ok=True)
