"""Publishes artifacts, so that no reader ever sees an incomplete one.

All files are written into a hidden folder of the destination, verified there, and renamed. `manifest.json` comes last,
so its presence proves that the artifacts are complete.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any, TypedDict

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.destination import (
    ALL_FOLDERS,
    JOURNAL,
    MANIFEST,
    OWNER,
    STAGING,
    occupied_folders,
    owner_of,
    writing_to,
)
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class SealedFile(TypedDict):
    """One published file in the manifest: its digest and its size."""

    digest: str
    bytes: int


def open_staging(destination: Path, spec_hash: str) -> Path:
    """Return a hidden folder inside `destination`.

    Of an interrupted run of the same spec, the folders with weight files stay in it, also one that was already public,
    as long as a journal can tell which of their files are finished. All other leftovers are removed. Raises
    StageError(DestinationUnwritable) if the destination cannot be written, or if it holds artifacts of another spec or
    of unknown origin.
    """
    staging = destination / STAGING
    with writing_to(destination):
        destination.mkdir(parents=True, exist_ok=True)
        occupied = occupied_folders(destination, spec_hash)
        if owner_of(staging / OWNER) != spec_hash:
            shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(exist_ok=True)
        write_json_atomically(staging / OWNER, {"specHash": spec_hash})
        # The owner file now proves whose files these are. A manifest must not exist with files that it does not list.
        (destination / MANIFEST).unlink(missing_ok=True)
        for name in ALL_FOLDERS:
            kept = (staging / JOURNAL / name).is_dir()
            if not kept:
                shutil.rmtree(staging / name, ignore_errors=True)
            if name in occupied:
                if kept and not (staging / name).exists():
                    (destination / name).replace(staging / name)
                else:
                    shutil.rmtree(destination / name)
    return staging


def seal(folder: Path, known: Mapping[str, SealedFile] | None = None) -> dict[str, SealedFile]:
    """Flush the files of a staged artifact to disk; return digest and bytes of each by name.

    `known` has files whose digest was taken while they were written; they are not read again.
    """
    sealed: dict[str, SealedFile] = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        if path.is_file():
            file = (known or {}).get(path.name)
            sealed[path.name] = file or {"digest": file_digest(path), "bytes": path.stat().st_size}
    _flush(folder)
    return sealed


def publish(destination: Path, folders: list[str], manifest: dict[str, Any]) -> None:
    """Rename the staged `folders` to their final names, then write the manifest, which holds the spec hash.

    Raises StageError(DestinationUnwritable) if another job has taken the destination since `open_staging`.
    """
    staging, spec_hash = destination / STAGING, manifest["specHash"]
    with writing_to(destination):
        occupied_folders(destination, spec_hash)
        if owner_of(staging / OWNER) != spec_hash:
            raise StageError(
                Reason.DESTINATION_UNWRITABLE,
                f"the output folder {destination.name} must belong to this job while it publishes, but another job has "
                "begun to publish there; give each job its own path",
            )
        for name in folders:
            (staging / name).replace(destination / name)
        _flush(destination)
        write_json_atomically(destination / MANIFEST, manifest)
        _flush(destination)
    # The manifest proves the publication, so a leftover does no harm.
    shutil.rmtree(staging, ignore_errors=True)


def discard_staging(destination: Path, spec_hash: str) -> None:
    """Remove the files that this spec staged; for artifacts that must not be published.

    The owner file stays if a folder is already public: it proves that the next run may replace the folder.
    """
    staging = destination / STAGING
    try:
        if owner_of(staging / OWNER) != spec_hash:
            return
        public = any((destination / name).exists() for name in ALL_FOLDERS)
    except OSError:
        return
    for folder in [staging / name for name in (JOURNAL, *ALL_FOLDERS)] if public else [staging]:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
