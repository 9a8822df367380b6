"""Publishes to a mounted folder: every file is copied to a hidden folder, read back and renamed; the manifest comes last."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.destinations.publisher import OnBytes, changed, parse_manifest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.destination import (
    MANIFEST,
    OWNER,
    STAGING,
    is_transient,
    occupied_folders,
    owner_of,
    publishing_alone,
    require_space,
    try_destination,
    writing_to,
)
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.destinations import DirectoryDestination
    from finetune_trainer.destinations.local_artifact import LocalArtifact

_COPY_BYTES = 8 << 20


class DirectoryPublisher:
    """One folder of a mounted claim."""

    def __init__(self, destination: DirectoryDestination, spec_hash: str) -> None:
        self._destination = destination
        self._folder = destination.path
        self._spec_hash = spec_hash

    def probe(self) -> None:
        """Do in small what publishing does. Raises InternalError, which is tried again, for a storage that does not answer."""
        try:
            try_destination(self._folder, self._spec_hash, overwrite=self._destination.overwrite)
        except StageError as error:
            if is_transient(error):
                raise StageError(Reason.DESTINATION_UNAVAILABLE, error.message) from error
            raise

    def published(self) -> dict[str, Any] | None:
        """Compare every file with its digest in the manifest."""
        with writing_to(self._folder):
            path = self._folder / MANIFEST
            manifest = parse_manifest(path.read_bytes()) if path.is_file() else {}
            files = manifest.get("files")
            if manifest.get("specHash") != self._spec_hash or not isinstance(files, dict):
                return None
            for name, listed in files.items():
                file = self._folder / name
                if not file.is_file() or file_digest(file) != listed["digest"]:
                    return None
        return manifest

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Copy the files that the staging folder lacks, then rename them and write the manifest."""
        with publishing_alone(self._folder), writing_to(self._folder):
            if (manifest := self.published()) is not None and artifact.is_listed_by(manifest):
                return None
            if not self._destination.overwrite:
                occupied_folders(self._folder, self._spec_hash)
            require_space(self._folder, artifact.bytes)
            staging = self._folder / STAGING
            if owner_of(staging / OWNER) != self._spec_hash:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(exist_ok=True)
            write_json_atomically(staging / OWNER, {"specHash": self._spec_hash})
            # From here on nothing is published. A manifest must not exist with files that it does not list.
            (self._folder / MANIFEST).unlink(missing_ok=True)
            done = 0
            for file in artifact.files:
                report = partial(_report, on_bytes, done)
                self._copy(file.path, staging / file.name, file.digest, report)
                done += file.bytes
                on_bytes(done)
            self._make_public(staging, artifact)
        return None

    def _copy(self, source: Path, target: Path, digest: str, on_bytes: OnBytes) -> None:
        """Copy one file unless it is staged, or was made public by an earlier try, with these bytes."""
        public = self._folder / target.relative_to(self._folder / STAGING)
        for found in (target, public):
            if (
                found.is_file()
                and found.stat().st_size == source.stat().st_size
                and file_digest(found) == digest
            ):
                if found is public:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    public.replace(target)
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("wb") as writer:
            sent = 0
            while chunk := reader.read(_COPY_BYTES):
                writer.write(chunk)
                sent += len(chunk)
                on_bytes(sent)
            writer.flush()
            os.fsync(writer.fileno())
        if file_digest(target) != digest:
            raise changed(self._destination.name, str(target.relative_to(self._folder / STAGING)))

    def _make_public(self, staging: Path, artifact: LocalArtifact) -> None:
        """Rename the top-level entries of the staging folder, then write the manifest."""
        for name in sorted({file.name.partition("/")[0] for file in artifact.files}):
            final = self._folder / name
            if final.is_dir():
                shutil.rmtree(final)
            (staging / name).replace(final)
        temporary = staging / MANIFEST
        with temporary.open("wb") as file:
            file.write(artifact.manifest)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            temporary.replace(self._folder / MANIFEST)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # The manifest proves the publication, so a leftover does no harm.
        shutil.rmtree(staging, ignore_errors=True)


def _report(on_bytes: OnBytes, before: int, sent: int) -> None:
    on_bytes(before + sent)
