"""The artifacts that MERGE has published to its folder, as the source of every copy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.destination import MANIFEST
from finetune_trainer.workspace.digests import file_digest


@dataclass(frozen=True)
class LocalFile:
    """One file: its path in every destination, its `sha256:` digest and its size."""

    name: str
    path: Path
    digest: str
    bytes: int


@dataclass(frozen=True)
class LocalArtifact:
    """A whole publication: its files without the manifest, and the manifest's bytes, which every destination gets last."""

    files: tuple[LocalFile, ...]
    manifest: bytes
    spec_hash: str

    @property
    def bytes(self) -> int:
        """Size of all files together, with the manifest."""
        return sum(file.bytes for file in self.files) + len(self.manifest)

    def is_listed_by(self, manifest: dict[str, Any]) -> bool:
        """Return whether a manifest of another place lists exactly the files of this publication's own manifest."""
        own: Any = json.loads(self.manifest)
        return manifest.get("specHash") == self.spec_hash and manifest.get("files") == own.get("files")


def read_artifact(folder: Path, spec_hash: str) -> LocalArtifact:
    """Read the publication in `folder`. Files that the manifest does not list are published, too, and digested here.

    Raises StageError(InternalError) if MERGE has not published it there for this spec, and ArtifactVerificationFailed if a
    listed file is missing or has another size.
    """
    try:
        manifest = (folder / MANIFEST).read_bytes()
        document = json.loads(manifest)
    except (FileNotFoundError, ValueError):
        document = {}
    if document.get("specHash") != spec_hash:
        raise StageError(
            Reason.INTERNAL_ERROR,
            "MERGE must have published to its own folder before copies are made, found none",
        )
    listed: dict[str, dict[str, Any]] = document.get("files") or {}
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    )
    files = []
    for name in names:
        if name == MANIFEST:
            continue
        path = folder / name
        entry = listed.get(name)
        size = path.stat().st_size
        if entry is not None and entry["bytes"] != size:
            raise damaged(name)
        files.append(LocalFile(name, path, file_digest(path) if entry is None else entry["digest"], size))
    missing = listed.keys() - set(names)
    if missing:
        raise damaged(min(missing))
    return LocalArtifact(tuple(files), manifest, spec_hash)


def damaged(name: str) -> StageError:
    """Make the error for a file that is not the one that MERGE verified."""
    return StageError(
        Reason.ARTIFACT_VERIFICATION_FAILED,
        f"the artifacts in the workspace must be those that MERGE verified, found {name} missing or changed; "
        "run the job again",
    )
