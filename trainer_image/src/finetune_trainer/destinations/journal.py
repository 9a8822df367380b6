"""The record of the files that have arrived at a destination and were verified there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from finetune_trainer.workspace.layout import write_json_atomically

_log = logging.getLogger(__name__)


class UploadJournal:
    """A file in the workspace: for each uploaded file, its digest and the version (ETag) that the destination gave it.

    A version that the destination still names proves the bytes, so a file is not sent and not read again. For a file on
    its way it holds the id of the unfinished upload. A journal of another `place` is ignored. One that cannot be read or
    written only costs time.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place
        document = self._read()
        self._entries: dict[str, list[str]] = _pairs(document.get("files"))
        self._uploads: dict[str, list[str]] = _pairs(document.get("uploads"))

    def holds(self, name: str, digest: str, version: str | None) -> bool:
        """Return whether the file was verified with this digest under this version."""
        return version is not None and self._entries.get(name) == [digest, version]

    def record(self, name: str, digest: str, version: str | None) -> None:
        """Remember a verified file."""
        ended = self._uploads.pop(name, None)
        if version is None and ended is None:
            return
        if version is not None:
            self._entries[name] = [digest, version]
        self._write()

    def begun(self, name: str, digest: str) -> str | None:
        """Return the id of the unfinished upload of a file with this digest."""
        found = self._uploads.get(name)
        return found[1] if found is not None and found[0] == digest else None

    def begin(self, name: str, digest: str, upload: str) -> None:
        """Remember an upload before its first part is sent."""
        self._uploads[name] = [digest, upload]
        self._write()

    def uploads(self) -> frozenset[str]:
        """Return the ids of all unfinished uploads."""
        return frozenset(upload for _, upload in self._uploads.values())

    def _write(self) -> None:
        document = {"place": self._place, "files": self._entries, "uploads": self._uploads}
        try:
            write_json_atomically(self._path, document)
        except OSError as error:
            _log.warning(
                "the record of arrived files cannot be kept, so another attempt sends them again: %s", error
            )

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(document) if document["place"] == self._place else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _pairs(members: Any) -> dict[str, list[str]]:
    """Return the members that are pairs of texts."""
    if not isinstance(members, dict):
        return {}
    return {
        name: list(pair)
        for name, pair in members.items()
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
    }
