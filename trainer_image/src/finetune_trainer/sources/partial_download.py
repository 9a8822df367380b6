"""A download that a killed process leaves behind and a later one goes on with."""

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
    """Which bytes a server holds: a strong validator, the length where it is known, the content's coding if any."""

    etag: str
    length: int | None
    coding: str = ""


class PartialFile:
    """The bytes of one object so far, in `.NAME.part` beside the target, and whose they are, in `.NAME.json`.

    The note holds the object's version and a digest of its name under a key of its own: two names can be
    compared, none can be read. Queries are no part of a name, because a signed one differs between pods.
    """

    def __init__(self, target: Path, name: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path = target.with_name(f".{target.name}.part")
        self._target = target
        self._note = target.with_name(f".{target.name}.json")
        self._name = name

    def finished(self) -> dict[str, Any] | None:
        """Return what `finish` was told, if the target is whole and holds the object of this name."""
        note = self._read_note()
        identity = note.get("identity")
        try:
            whole = self._target.stat().st_size == note.get("size")
        except OSError:
            return None
        return identity if whole and isinstance(identity, dict) else None

    def resumable(self) -> tuple[Version, int] | None:
        """Return version and number of the bytes that an earlier process left; None where there are none."""
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
        """Start from nothing; a `version` makes it resumable for a later process."""
        self.path.unlink(missing_ok=True)
        if version is None:
            self._note.unlink(missing_ok=True)
        else:
            self._write_note({"etag": version.etag, "length": version.length, "coding": version.coding})

    def finish(self, identity: dict[str, Any]) -> None:
        """Put the bytes in their place; `identity` says which they are."""
        self._note.unlink(missing_ok=True)
        with self.path.open("rb") as file:
            # The note below must not outlive bytes that a dying node never wrote.
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        self.path.replace(self._target)
        self._write_note({"identity": identity, "size": size})

    def _read_note(self) -> dict[str, Any]:
        """Return the note on the object of this name; empty where it is absent, broken, or on another object."""
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
