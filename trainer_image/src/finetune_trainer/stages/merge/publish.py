"""Publishes artifacts, so that no reader ever sees an incomplete one.

All files are written into a hidden folder of the destination, verified there, and renamed. `manifest.json` comes last,
so its presence proves that the artifacts are complete.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.digests import folder_digests
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "manifest.json"
_STAGING = ".finetune-staging"
_OWNER = "owner.json"
FOLDERS = {"Adapter": "adapter", "Merged": "merged"}
REPORT_FOLDER = "report"
_ALL_FOLDERS = (*FOLDERS.values(), REPORT_FOLDER)


class SealedFile(TypedDict):
    """One published file in the manifest: its digest and its size."""

    digest: str
    bytes: int


@contextmanager
def writing_to_destination() -> Iterator[None]:
    """Turn a failure of the file system in this block into StageError(DestinationUnwritable)."""
    try:
        yield
    except OSError as error:
        raise StageError(
            Reason.DESTINATION_UNWRITABLE,
            f"the output destination must be writable, found: {error.strerror or error}; check the claim, its free "
            "space and its permissions for the pod's user and group",
        ) from error


def open_staging(destination: Path, spec_hash: str) -> Path:
    """Return an empty hidden folder inside `destination`.

    Leftovers of an interrupted run of the same spec are removed. Raises StageError(DestinationUnwritable) if the
    destination cannot be written, or if it holds artifacts of another spec or of unknown origin.
    """
    staging = destination / _STAGING
    with writing_to_destination():
        destination.mkdir(parents=True, exist_ok=True)
        published, staged = _spec_hash(destination / MANIFEST), _spec_hash(staging / _OWNER)
        if published not in {None, spec_hash}:
            raise _occupied(destination, f"the {MANIFEST} of another job")
        occupied = [name for name in _ALL_FOLDERS if (destination / name).exists()]
        if occupied and spec_hash not in {published, staged}:
            raise _occupied(destination, f"a folder `{occupied[0]}` without a {MANIFEST}")
        staging.mkdir(exist_ok=True)
        write_json_atomically(staging / _OWNER, {"specHash": spec_hash})
        # The owner file now proves whose files these are. A manifest must not exist with files that it does not list.
        (destination / MANIFEST).unlink(missing_ok=True)
        for name in _ALL_FOLDERS:
            shutil.rmtree(staging / name, ignore_errors=True)
            if name in occupied:
                shutil.rmtree(destination / name)
    return staging


def seal(folder: Path) -> dict[str, SealedFile]:
    """Flush the files of a staged artifact to disk; return digest and bytes of each by name."""
    for path in folder.iterdir():
        _flush(path)
    _flush(folder)
    return {
        name: {"digest": digest, "bytes": (folder / name).stat().st_size}
        for name, digest in folder_digests(folder).items()
    }


def publish(destination: Path, folders: list[str], manifest: dict[str, Any]) -> None:
    """Rename the staged `folders` to their final names, then write the manifest."""
    staging = destination / _STAGING
    with writing_to_destination():
        for name in folders:
            (staging / name).replace(destination / name)
        _flush(destination)
        write_json_atomically(destination / MANIFEST, manifest)
        _flush(destination)
        shutil.rmtree(staging)


def discard_staging(destination: Path) -> None:
    """Remove the staged files; for artifacts that must not be published."""
    shutil.rmtree(destination / _STAGING, ignore_errors=True)


def _spec_hash(path: Path) -> str | None:
    """Return `specHash` of a JSON file; None if there is no file, "unknown" if the file has none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return "unknown"
    return str(document.get("specHash")) if isinstance(document, dict) else "unknown"


def _occupied(destination: Path, found: str) -> StageError:
    return StageError(
        Reason.DESTINATION_UNWRITABLE,
        f"the output folder {destination.name} must be empty or hold this job's own artifacts, found {found}; "
        "choose another output path, or empty the folder",
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
