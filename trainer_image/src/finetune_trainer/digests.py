"""Digests of files and folders."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from finetune_trainer.workspace import digest_of

if TYPE_CHECKING:
    from pathlib import Path


def file_digest(path: Path) -> str:
    """`sha256:` digest of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of every file in `folder` (no subfolders), by name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


def digest_of_files(digests: dict[str, str]) -> str:
    """Digest over the sorted list of (file name, file digest)."""
    return digest_of(sorted(digests.items()))
