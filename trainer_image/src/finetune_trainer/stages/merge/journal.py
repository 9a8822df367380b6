"""The record of each finished weight file, with which a merge continues after a kill.

A record stays outside of the folder that is published. It is written after its file is complete on the disk, and it
names the digest of everything that decides the file's bytes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class FileRecord:
    """A finished weight file: its size and its `sha256:` digest."""

    bytes: int
    digest: str


class Journal:
    """The records in `folder` for one merge; `inputs` is the digest of what decides its bytes."""

    def __init__(self, folder: Path, inputs: str) -> None:
        self._folder = folder
        self._inputs = inputs

    def find(self, path: Path) -> FileRecord | None:
        """Return the record of the file at `path` if it is of these inputs and the file has its size and digest."""
        record = self._read(path.name)
        if record is None or not path.is_file() or path.stat().st_size != record.bytes:
            return None
        return record if file_digest(path) == record.digest else None

    def write(self, name: str, record: FileRecord) -> None:
        """Record that the file of this name is complete."""
        write_json_atomically(self._folder / f"{name}.json", {"inputs": self._inputs, **asdict(record)})

    def open(self, target: Path) -> None:
        """Make the folders of files and records, and remove everything from `target` that has no record of these inputs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        for path in target.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif self._read(path.name) is None:
                path.unlink()

    def _read(self, name: str) -> FileRecord | None:
        try:
            document: dict[str, Any] = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
            if document["inputs"] != self._inputs:
                return None
            return FileRecord(int(document["bytes"]), str(document["digest"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
