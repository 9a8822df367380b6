"""A partial download that a later process can resume after its process was killed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.workspace.layout import write_json_atomically


@dataclass(frozen=True)
class Version:
    """The version of a file on a server: a strong ETag, the length if known, the content coding if any."""

    etag: str
    length: int | None
    coding: str = ""


class PartialFile:
    """The bytes of one object so far in `.NAME.part` next to the destination, and a note about it in `.NAME.json`.

    The note holds the object's version and a keyed digest of its name, with a new key each time. So names can be
    compared but not read. A name has no query, because a signed query differs between pods.
    """

    def __init__(self, destination: Path, name: str) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.path = destination.with_name(f".{destination.name}.part")
        self._destination = destination
        self._note = destination.with_name(f".{destination.name}.json")
        self._name = name

    def finished(self) -> dict[str, Any] | None:
        """Return the identity passed to `finish` if the destination is complete and holds the object of this name."""
        note = self._read_note()
        identity = note.get("identity")
        try:
            complete = self._destination.stat().st_size == note.get("size")
        except OSError:
            return None
        return identity if complete and isinstance(identity, dict) else None

    def resumable(self) -> tuple[Version, int] | None:
        """Return the version and number of the bytes that an earlier process left, or None if there are none."""
        note = self._read_note()
        etag, length, coding = note.get("etag"), note.get("length"), note.get("coding")
        try:
            size = self.path.stat().st_size
        except OSError:
            return None
        if not isinstance(etag, str) or not isinstance(coding, str) or not isinstance(length, int | None):
            return None
        if size == 0 or (length is not None and size > length):
            return None
        return Version(etag, length, coding), size

    def begin(self, version: Version | None) -> None:
        """Start at the first byte. With a `version`, a later process can resume the download."""
        self.path.unlink(missing_ok=True)
        if version is None:
            self._note.unlink(missing_ok=True)
        else:
            self._write_note({"etag": version.etag, "length": version.length, "coding": version.coding})

    def finish(self, identity: dict[str, Any]) -> None:
        """Move the bytes to the destination and save their `identity`."""
        self._note.unlink(missing_ok=True)
        with self.path.open("rb") as file:
            # A node that fails must not leave the note without the bytes.
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        self.path.replace(self._destination)
        self._write_note({"identity": identity, "size": size})

    def _read_note(self) -> dict[str, Any]:
        """Return the note about the object of this name; {} if it is missing, broken, or about another object."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(note, dict):
            return {}
        key, digest = note.get("key"), note.get("object")
        if not isinstance(key, str) or not isinstance(digest, str):
            return {}
        return note if self._digest(key) == digest else {}

    def _write_note(self, members: dict[str, Any]) -> None:
        key = secrets.token_hex(16)
        write_json_atomically(self._note, {"key": key, "object": self._digest(key), **members})

    def _digest(self, key: str) -> str:
        return hmac.new(os.fsencode(key), os.fsencode(self._name), hashlib.sha256).hexdigest()
