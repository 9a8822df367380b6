"""The output destination: its layout, its owner, and whether it takes what will be written.

PREPARE tries it before a GPU is requested, and MERGE publishes to it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = ".finetune-staging"
OWNER = "owner.json"
FOLDERS = {"Adapter": "adapter", "Merged": "merged", "BaseAsTrained": "base-as-trained"}
REPORT_FOLDER = "report"
PROVENANCE_FOLDER = "provenance"
"""Holds the statement over all other files, which the manifest names and does not list."""
ALL_FOLDERS = (*FOLDERS.values(), REPORT_FOLDER, PROVENANCE_FOLDER)
JOURNAL = "journal"
"""Folder of the staging folder with the records of finished weight files."""

_TRIAL_PREFIX = ".finetune-trial-"
_TRIAL = b"\0" * 64 * 1024
_GIB = 1024**3
# The storage did not answer as it should. The same call may succeed later.
_TRANSIENT = frozenset(
    (
        errno.EAGAIN, errno.EBUSY, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO,
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT,
    )
)  # fmt: skip
_NOT_A_FOLDER = frozenset((errno.EEXIST, errno.ELOOP, errno.ENOTDIR))
_REMEDIES = {
    **dict.fromkeys(_NOT_A_FOLDER, "choose another path, or remove what is there"),
    errno.EACCES: "give them write access, for example by the folder's owner or mode",
    errno.EPERM: "give them write access, for example by the folder's owner or mode",
    errno.EROFS: "use a claim and an access mode that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOSPC: "free space on the claim or enlarge it",
    errno.EFBIG: "use a claim whose file system takes files of this size",
    errno.EDQUOT: "raise the quota or free space within it",
    errno.ENOSYS: "use a claim whose file system can rename files and folders",
    errno.EOPNOTSUPP: "use a claim whose file system can rename files and folders",
}


@contextmanager
def writing_to(destination: Path) -> Iterator[None]:
    """Turn a failure of the file system at `destination` in this block into StageError(DestinationUnwritable).

    An error that names other paths only, such as those of the workspace, passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, destination):
            raise
        raise StageError(Reason.DESTINATION_UNWRITABLE, _description(error, destination)) from error


@contextmanager
def publishing_alone(destination: Path) -> Iterator[None]:
    """Make the folder `destination`, and keep other processes from publishing to it during this block.

    Raises StageError(DestinationUnwritable) if another process does so now. A file system without locks gives none.
    """
    with writing_to(destination):
        destination.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(destination, "another process that publishes there now") from error
        except OSError as error:
            _log.info("the destination cannot be locked: %s", error.strerror)
        yield
    finally:
        os.close(descriptor)


def occupied_folders(destination: Path, spec_hash: str) -> list[str]:
    """Return the names of the artifact folders that an earlier run of this spec left.

    Raises StageError(DestinationUnwritable) if the destination cannot be read, or if it holds artifacts of another spec
    or of unknown origin.
    """
    with writing_to(destination):
        published = owner_of(destination / MANIFEST)
        staged = owner_of(destination / STAGING / OWNER)
        if published not in {None, spec_hash}:
            raise _taken(destination, f"the {MANIFEST} of another job")
        occupied = [name for name in ALL_FOLDERS if (destination / name).exists()]
        if occupied and spec_hash not in {published, staged}:
            raise _taken(destination, f"a folder `{occupied[0]}` without a {MANIFEST}")
        return occupied


def owner_of(path: Path) -> str | None:
    """Return `specHash` of a JSON file; None if there is no file, "unknown" if the file has none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return "unknown"
    return str(document.get("specHash")) if isinstance(document, dict) else "unknown"


def try_destination(destination: Path, spec_hash: str, *, overwrite: bool = False) -> None:
    """Do at the destination once, in small, what publishing does, and leave no trace.

    With `overwrite`, artifacts of another spec do not matter.

    Raises StageError(DestinationUnwritable) if a step fails, or if the destination is taken by another spec.
    """
    occupied = list(ALL_FOLDERS) if overwrite else occupied_folders(destination, spec_hash)
    with writing_to(destination), _made(destination):
        _rehearse(destination)
        for name in (STAGING, *occupied):
            _require_replaceable(destination / name)


def fault_behind(error: Exception, destination: Path) -> StageError | None:
    """Return the failure of the existing folder `destination` that caused `error`; None if the cause is elsewhere.

    Libraries wrap the system's errors or hide them. So after an unknown error the destination is tried.
    """
    if isinstance(error, StageError):
        cause = error.__cause__
        if error.reason is Reason.DESTINATION_UNWRITABLE or not isinstance(cause, OSError):
            return None
        if cause.filename is None or not _concerns(cause, destination):
            return None
        return StageError(Reason.DESTINATION_UNWRITABLE, _description(cause, destination))
    try:
        with writing_to(destination):
            _rehearse(destination)
    except StageError as fault:
        return fault
    return None


def require_space(destination: Path, needed: int) -> None:
    """Raise StageError(DestinationUnwritable) unless `needed` bytes fit on the volume of `destination`.

    Folders of an earlier run of this spec count as free, because publishing replaces them. A file system that does not
    tell its size passes.
    """
    with writing_to(destination):
        existing = next(path for path in (destination, *destination.parents) if path.is_dir())
        status = os.statvfs(existing)
    if status.f_blocks == 0:
        return
    replaced = sum(_allocated_bytes(destination / name) for name in (STAGING, *ALL_FOLDERS))
    free = status.f_bavail * status.f_frsize + replaced
    if free < needed:
        raise StageError(
            Reason.DESTINATION_UNWRITABLE,
            f"the output destination must have {_size(needed)} of free space for the artifacts, found {_size(free)} at "
            f"{destination}; free space on the claim or enlarge it, or publish fewer output.artifacts",
        )


def is_transient(error: StageError) -> bool:
    """Return whether the destination failed for a cause that may end by itself, such as a storage that is away."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _TRANSIENT


def folder_bytes(folder: Path) -> int:
    """Return the sizes of all files below `folder` together; 0 if there is no folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _concerns(error: OSError, destination: Path) -> bool:
    """Return whether the error names the destination, a path in it, a folder above it, or no path at all."""
    names = [error.filename, error.filename2]
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        names = [name for entry in error.args[0] for name in entry[:2]]
    paths = [Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes | os.PathLike)]
    return not paths or any(
        path.is_relative_to(destination) or destination.is_relative_to(path) for path in paths
    )


def _description(error: OSError, destination: Path) -> str:
    if error.errno in _NOT_A_FOLDER:
        found = f"something else than a folder at {_obstacle(destination)}"
    else:
        found = error.strerror or str(error)
        place = error.filename2 or error.filename
        found += f" at {os.fsdecode(place) if isinstance(place, str | bytes) else destination}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        groups = ", ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
        found += f" for user {os.geteuid()} with the groups {groups}"
    remedy = _REMEDIES.get(error.errno or 0, "check the claim, its storage and its free space")
    return f"the output destination must be writable, found: {found}; {remedy}"


def _obstacle(destination: Path) -> Path:
    """Return the first part of the path that exists and is no folder, for example a file or a broken link."""
    for path in reversed((destination, *destination.parents)):
        if os.path.lexists(path) and not path.is_dir():
            return path
    return destination


def _taken(destination: Path, found: str) -> StageError:
    return StageError(
        Reason.DESTINATION_UNWRITABLE,
        f"the output folder {destination.name} must be empty or hold this job's own artifacts, found {found}; "
        "choose another output path, or empty the folder",
    )


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Make `path` and the missing folders above it for the duration of this block."""
    made: list[Path] = []
    try:
        for folder in reversed((path, *path.parents)):
            if not folder.is_dir():
                with suppress(FileExistsError):  # another job may have made it by now
                    folder.mkdir()
                    made.insert(0, folder)
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # another job may use it by now
                folder.rmdir()


def _rehearse(destination: Path) -> None:
    """Write, flush, rename, read and delete a small file and its folder."""
    trial = Path(tempfile.mkdtemp(prefix=_TRIAL_PREFIX, dir=destination))
    try:
        staged, final = trial / "staged", trial / "final"
        staged.mkdir()
        with (staged / "temporary").open("wb") as file:
            file.write(_TRIAL)
            file.flush()
            os.fsync(file.fileno())
        (staged / "temporary").replace(staged / "file")
        staged.replace(final)
        _require_trial(final / "file")
    except BaseException:
        shutil.rmtree(trial, ignore_errors=True)
        raise
    shutil.rmtree(trial)


def _require_trial(path: Path) -> None:
    if path.read_bytes() != _TRIAL:
        raise OSError(errno.EIO, "other bytes than were written", str(path))


def _require_replaceable(folder: Path) -> None:
    """Raise PermissionError if the files in a folder of an earlier run cannot be deleted."""
    for path in (folder, *(entry for entry in folder.rglob("*") if entry.is_dir())):
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _allocated_bytes(folder: Path) -> int:
    total = 0
    with suppress(OSError):  # what cannot be read does not count as free
        for path in folder.rglob("*"):
            if path.is_file():
                total += path.stat().st_blocks * 512
    return total


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB // 100 else f"{count / 1024:.0f} KiB"
