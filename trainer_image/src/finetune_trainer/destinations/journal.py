"""The record of the files that have arrived at a destination and were verified there."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_trainer.workspace.layout import write_json_atomically


class UploadJournal:
    """A file in the workspace: for each uploaded file, its digest and the version (ETag) that the destination gave it.

    A version that the destination still names proves the bytes, so a file is not sent and not read again. A journal of
    another `place` is ignored. One that cannot be read or written only costs time.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place
        self._entries = self._read()

    def holds(self, name: str, digest: str, version: str | None) -> bool:
        """Return whether the file was verified with this digest under this version."""
        return version is not None and self._entries.get(name) == [digest, version]

    def record(self, name: str, digest: str, version: str | None) -> None:
        """Remember a verified file."""
        if version is None:
            return
        self._entries[name] = [digest, version]
        write_json_atomically(self._path, {"place": self._place, "files": self._entries})

    def _read(self) -> dict[str, list[str]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(document["files"]) if document["place"] == self._place else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
