"""Sends large files to the storage of a hub, by the Git LFS batch API with its transfers `basic` and `multipart`.

The storage answers for content that it has already, so nothing is sent twice. Formats: git-lfs, docs/api/batch.md; the
transfer `multipart` is the hub's own: `header` has the size of a part in `chunk_size` and an address for each part's
number, and `href` takes the list of the parts' ETags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.destinations.http_client import Answer
from finetune_trainer.destinations.hub_client import document_of
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.retry_after import requested_pause

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.destinations.hub_client import HubClient
    from finetune_trainer.destinations.local_artifact import LocalFile
    from finetune_trainer.destinations.publisher import OnBytes
    from finetune_trainer.sources.url import Location

LFS_TYPE = "application/vnd.git-lfs+json"
_CHUNK_BYTES = 1 << 20
_MAXIMUM_PARTS = 10_000
_STORED = frozenset({200, 201, 202, 204})
_FIELD = re.compile(r"[!-~]([ -~]*[!-~])?")
_OWN_FIELDS = frozenset({"host", "content-length", "transfer-encoding", "connection", "user-agent"})


class _AddressExpiredError(Exception):
    """The storage rejects an address that the hub has signed; the hub signs another one."""


class LargeFile:
    """One file on its way to the storage."""

    def __init__(self, client: HubClient, file: LocalFile, revision: str, on_sent: OnBytes) -> None:
        self._client = client
        self._file = file
        self._revision = revision
        self._on_sent = on_sent
        self._oid = file.digest.removeprefix("sha256:")
        self._best = 0

    def upload(self) -> None:
        """Send the file unless the storage has it. Raises StageError."""
        self._client.retried(self._attempt, lambda: self._best, lambda: self._on_sent(self._best))

    def _attempt(self) -> None:
        try:
            self._send(self._batch())
        except _AddressExpiredError as error:
            raise Outage(str(error)) from None

    def _send(self, found: dict[str, Any]) -> None:
        """Do what the batch API says about the file."""
        actions = found.get("actions") or {}
        upload, verify = actions.get("upload"), actions.get("verify")
        if upload is not None:
            header = upload.get("header") or {}
            place = self._place(upload)
            if "chunk_size" in header:
                self._send_parts(place, header)
            else:
                self._send_range(place, 0, self._file.bytes, _plain_fields(header))
        if verify is not None:
            self._post(self._place(verify), {"oid": self._oid, "size": self._file.bytes}, "application/json")

    def _batch(self) -> dict[str, Any]:
        """Ask where the file goes."""
        document = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": self._oid, "size": self._file.bytes}],
            "hash_algo": "sha256",
            "ref": {"name": self._revision},
        }
        path = f"/{self._client.repository}.git/info/lfs/objects/batch"
        objects = document_of(self._client.ask("POST", path, document, media=LFS_TYPE)).get("objects")
        found = objects[0] if isinstance(objects, list) and objects else None
        if not isinstance(found, dict) or found.get("oid") != self._oid:
            raise Outage("a response that does not follow the batch API")
        error = found.get("error")
        if isinstance(error, dict):
            code = error.get("code")
            self._client.require(Answer(code if isinstance(code, int) else 500, {}, b""), set())
        return found

    def _send_parts(self, complete: Location, header: dict[str, Any]) -> None:
        """Send each part to its own address, then their ETags."""
        addresses = {int(key): value for key, value in header.items() if key.isascii() and key.isdigit()}
        try:
            size = int(header["chunk_size"])
        except (TypeError, ValueError):
            size = 0
        count = -(-self._file.bytes // size) if size > 0 else 0
        if not 0 < count <= _MAXIMUM_PARTS or sorted(addresses) != list(range(1, count + 1)):
            raise Outage("a plan of parts that does not cover the file")
        etags = []
        for number in range(1, count + 1):
            first = (number - 1) * size
            last = min(first + size, self._file.bytes)
            place = self._client.follow(complete, str(addresses[number]))
            # A part is tried again by itself, so that an outage does not cost those before it.
            found = self._client.retried(
                partial(self._send_range, place, first, last, {}), waiting=lambda: self._on_sent(self._best)
            )
            if not found.fields.get("etag"):
                raise Outage("a part without an ETag")
            etags.append({"partNumber": number, "etag": found.fields["etag"]})
        self._post(complete, {"oid": self._oid, "parts": etags}, LFS_TYPE)

    def _send_range(self, place: Location, first: int, last: int, fields: dict[str, str]) -> Answer:
        """Send the bytes from `first` to before `last` in one request."""
        fields = {**fields, "content-length": str(last - first)}
        found = self._client.send("PUT", place, fields, self._chunks(self._file.path, first, last))
        return self._stored(place, found)

    def _post(self, place: Location, document: dict[str, Any], media: str) -> None:
        """Send a document to an address that the hub has named."""
        body = json.dumps(document).encode()
        fields = {"accept": media, "content-type": media, "content-length": str(len(body))}
        self._stored(place, self._client.send("POST", place, fields, body))

    def _stored(self, place: Location, found: Answer) -> Answer:
        """Return an answer that says that something has arrived."""
        status = found.status
        if status in _STORED:
            return found
        if status == 401 and self._client.is_own(place):
            self._client.require(found, _STORED)
        if status >= 500 or status in {408, 425, 429}:
            raise Outage(f"HTTP status {status} from the storage", requested_pause(found.fields))
        raise _AddressExpiredError(f"HTTP status {status} from the storage")

    def _chunks(self, path: Path, first: int, last: int) -> Iterator[bytes]:
        with path.open("rb") as content:
            content.seek(first)
            sent = first
            while chunk := content.read(min(_CHUNK_BYTES, last - sent)):
                sent += len(chunk)
                self._best = max(self._best, sent)
                self._on_sent(self._best)
                yield chunk

    def _place(self, action: Any) -> Location:
        href = action.get("href") if isinstance(action, dict) else None
        if not isinstance(href, str):
            raise Outage("an upload without an address")
        return self._client.follow(self._client.at("/"), href)


def _plain_fields(header: Any) -> dict[str, str]:
    """Return the fields that the hub asks for with an upload, without those that describe this connection."""
    return {
        str(name).lower(): value
        for name, value in header.items()
        if str(name).lower() not in _OWN_FIELDS
        and isinstance(value, str)
        and _FIELD.fullmatch(f"{name}{value}")
    }
