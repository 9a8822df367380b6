"""Publishes to S3-compatible stores, Google Cloud Storage and Azure Blob Storage.

Stores cannot rename, so readers take `manifest.json` as the truth: it is written last, and while it is absent nothing is
published. An owner object marks the prefix from the first byte on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import obstore

from finetune_trainer.destinations.journal import UploadJournal
from finetune_trainer.destinations.part_store import PartStore, part_store
from finetune_trainer.destinations.parted_upload import PartedUpload, abort_others, part_bytes
from finetune_trainer.destinations.publisher import OnBytes, changed, parse_manifest, taken
from finetune_trainer.destinations.store_http import StoreAccess, StoreHttp
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.store_client import Store
from finetune_trainer.sources.store_connection import StoreConnection
from finetune_trainer.workspace.destination import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from finetune_trainer.contract.destinations import ObjectStoreDestination
    from finetune_trainer.destinations.local_artifact import LocalArtifact, LocalFile
    from finetune_trainer.sources.egress import Egress
    from finetune_trainer.sources.fetch_target import FetchTarget
    from finetune_trainer.sources.network import Network

OWNER = ".finetune-owner.json"
"""Object below the prefix that names the spec whose files lie there until its manifest does."""
_PROBE_PREFIX = ".finetune-probe-"
_SECONDS = 7 * 86400.0  # a large file may take long; the next limit ends a transfer that stands still
_SILENT_SECONDS = 120.0  # a store may join the parts of a large file for a while
_READ_BYTES = 1 << 20
_Result = TypeVar("_Result")


class ObjectStorePublisher:
    """One prefix of one bucket. `journal_path` is a file of the workspace."""

    def __init__(
        self,
        destination: ObjectStoreDestination,
        spec_hash: str,
        journal_path: Path,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        self._destination = destination
        self._name = destination.name
        self._spec_hash = spec_hash
        self._journal_path = journal_path
        target = destination_target(destination.name)
        self._opened_parts = partial(self._open_parts, target, network, allow_private=allow_private)
        self._connection = StoreConnection(
            destination,
            target,
            environment,
            allow_private=allow_private,
            seconds=_SECONDS,
            network=network,
            read_seconds=_SILENT_SECONDS,
        )
        self._access = StoreAccess.of(destination, target, environment)

    def probe(self) -> None:
        """Write, read and delete an object below the prefix."""
        with self._opened(_ignore) as bucket:
            self._require_free(bucket)
            content = secrets.token_bytes(64)
            name = _PROBE_PREFIX + secrets.token_hex(8)
            try:
                bucket.put(name, content)
                if bucket.get(name) != content:
                    raise changed(self._name, name)
            finally:
                bucket.delete(name)

    def published(self) -> dict[str, Any] | None:
        """Compare the manifest's files with the store's list of names and sizes."""
        with self._opened(_ignore) as bucket:
            text = bucket.get(MANIFEST)
            manifest = parse_manifest(text) if text is not None else {}
            return manifest if self._is_whole(bucket, manifest) else None

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Upload the files that the store lacks, then the manifest."""
        journal = UploadJournal(
            self._journal_path, f"{self._destination.endpoint or ''} {self._destination.uri}"
        )
        with self._opened(on_bytes) as bucket:
            text = bucket.get(MANIFEST)
            earlier = parse_manifest(text) if text is not None else {}
            if artifact.is_listed_by(earlier) and self._is_whole(bucket, earlier):
                return None
            self._require_free(bucket)
            bucket.put(OWNER, _owner(self._spec_hash))
            # From here on nothing is published. A manifest must not exist with files that it does not list.
            bucket.delete(MANIFEST)
            ours = {file.name for file in artifact.files}
            for name in _listed_names(earlier) - ours:
                bucket.delete(name)
            self._abort_others(journal, ours)
            done = 0
            for file in artifact.files:
                self._upload(bucket, journal, file, done)
                done += file.bytes
                bucket.report(done)
            if bucket.get(OWNER) != _owner(self._spec_hash):
                raise taken(self._name, "another job that publishes there now")
            bucket.put(MANIFEST, artifact.manifest)
            if bucket.get(MANIFEST) != artifact.manifest:
                raise changed(self._name, MANIFEST)
            bucket.delete(OWNER)
        return None

    def _upload(self, bucket: _Bucket, journal: UploadJournal, file: LocalFile, before: int) -> None:
        """Send a file unless it is there already, and read it back."""
        found = bucket.head(file.name)
        if found is not None and found[0] == file.bytes:
            if journal.holds(file.name, file.digest, found[1]):
                return
            if bucket.digest(file.name, lambda _: bucket.report(before)) == file.digest:
                journal.record(file.name, file.digest, found[1])
                return
        if self._access is not None and file.bytes > part_bytes(file.bytes):
            key = bucket.key(file.name)
            PartedUpload(
                self._opened_parts, key, file, journal, lambda sent: bucket.report(before + sent)
            ).send()
        else:
            bucket.put_file(file, lambda sent: bucket.report(before + sent))
        found = bucket.head(file.name)
        arrived = bucket.digest(file.name, lambda _: bucket.report(before + file.bytes))
        if found is None or arrived != file.digest:
            raise changed(self._name, file.name)
        journal.record(file.name, file.digest, found[1])

    def _abort_others(self, journal: UploadJournal, names: set[str]) -> None:
        """Give up the uploads of these files that nobody will finish, so that their parts cost no space."""
        if self._access is None:
            return
        prefix = self._connection.uri.key
        with self._opened_parts() as (_, store):
            keys = {f"{prefix}/{name}" for name in names}
            abort_others(store, f"{prefix}/", keys, journal.uploads())

    @contextmanager
    def _open_parts(
        self, target: FetchTarget, network: Network, *, allow_private: bool
    ) -> Iterator[tuple[StoreHttp, PartStore]]:
        if self._access is None:
            raise RuntimeError("uploads in parts need credentials of a Secret")
        with self._access.opened(target, network, allow_private=allow_private) as client:
            yield client, part_store(client, self._access.kind)

    def _require_free(self, bucket: _Bucket) -> None:
        """Raise StageError unless the prefix is empty, this spec's, or may be overwritten."""
        if self._destination.overwrite:
            return
        text = bucket.get(MANIFEST)
        if text is not None:
            if parse_manifest(text).get("specHash") != self._spec_hash:
                raise taken(self._name, f"the {MANIFEST} of another job")
            return
        owner = bucket.get(OWNER)
        if owner is None:
            others = [name for name in bucket.sizes() if not name.startswith(_PROBE_PREFIX)]
            if others:
                raise taken(self._name, f"an object `{min(others)}` without a {MANIFEST}")
        elif owner != _owner(self._spec_hash):
            raise taken(self._name, "the unfinished files of another job")

    def _is_whole(self, bucket: _Bucket, manifest: dict[str, Any]) -> bool:
        files = manifest.get("files")
        if manifest.get("specHash") != self._spec_hash or not isinstance(files, dict):
            return False
        sizes = bucket.sizes()
        return all(
            isinstance(entry, dict) and sizes.get(name) == entry.get("bytes") for name, entry in files.items()
        )

    @contextmanager
    def _opened(self, on_bytes: OnBytes) -> Iterator[_Bucket]:
        with self._connection.connected() as (store, egress):
            yield _Bucket(self._connection, store, egress, on_bytes)


class _Bucket:
    """The calls to an open store, each tried again during an outage. Names are relative to the prefix."""

    def __init__(
        self, connection: StoreConnection, store: Store, egress: Egress | None, on_bytes: OnBytes
    ) -> None:
        self._connection = connection
        self._store = store
        self._egress = egress
        self._prefix = connection.uri.key
        self._on_bytes = on_bytes
        self._sent = 0
        self._done = 0

    def report(self, done: int) -> None:
        """Report the bytes that have arrived."""
        self._done = done
        self._on_bytes(done)

    def get(self, name: str) -> bytes | None:
        """Return a small object; None if there is none."""
        return self._found(lambda: bytes(obstore.get(self._store, self.key(name)).bytes()))

    def head(self, name: str) -> tuple[int, str | None] | None:
        """Return size and ETag of an object; None if there is none."""
        meta = self._found(lambda: obstore.head(self._store, self.key(name)))
        return None if meta is None else (int(meta["size"]), meta["e_tag"])

    def put(self, name: str, content: bytes) -> None:
        """Write a small object."""
        self._retried(lambda: obstore.put(self._store, self.key(name), content, use_multipart=False))

    def put_file(self, file: LocalFile, on_sent: OnBytes) -> None:
        """Send a file, in parts if it is large. A failed attempt leaves no object."""
        part = part_bytes(file.bytes)

        def send() -> None:
            self._sent = 0
            body = self._chunks(file, on_sent) if file.bytes > part else file.path.read_bytes()
            obstore.put(
                self._store,
                self.key(file.name),
                body,
                use_multipart=file.bytes > part,
                chunk_size=part,
                max_concurrency=4,
            )

        self._retried(send, lambda: self._sent)

    def _chunks(self, file: LocalFile, on_sent: OnBytes) -> Iterator[bytes]:
        with file.path.open("rb") as content:
            while chunk := content.read(_READ_BYTES):
                self._sent += len(chunk)
                on_sent(self._sent)
                yield chunk

    def digest(self, name: str, on_read: OnBytes) -> str:
        """Read an object back and return its `sha256:` digest."""

        def read() -> str:
            digest, done = hashlib.sha256(), 0
            for chunk in obstore.get(self._store, self.key(name)).stream(min_chunk_size=_READ_BYTES):
                digest.update(chunk)
                done += len(chunk)
                on_read(done)
            return f"sha256:{digest.hexdigest()}"

        return self._retried(read)

    def delete(self, name: str) -> None:
        """Remove an object; one that is absent is fine."""
        self._found(lambda: obstore.delete(self._store, self.key(name)))

    def sizes(self) -> dict[str, int]:
        """Return the sizes of all objects below the prefix, by name."""

        def listed() -> dict[str, int]:
            found: dict[str, int] = {}
            for entries in obstore.list(self._store, self._prefix + "/"):
                for entry in entries:
                    found[entry["path"].removeprefix(f"{self._prefix}/")] = int(entry["size"])
            return found

        return self._retried(listed)

    def key(self, name: str) -> str:
        """Return the key of a name."""
        return f"{self._prefix}/{name}"

    def _found(self, action: Callable[[], _Result]) -> _Result | None:
        """Run a call on one object; None if there is no object of that name."""

        def run() -> _Result | None:
            try:
                return action()
            except FileNotFoundError:
                return None

        return self._retried(run)

    def _retried(self, action: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
        result: _Result = self._connection.retried(
            action, self._egress, lambda: self._on_bytes(self._done), progress=progress
        )
        return result


def _owner(spec_hash: str) -> bytes:
    return json.dumps({"specHash": spec_hash}).encode()


def _listed_names(manifest: dict[str, Any]) -> set[str]:
    """Return the files that an earlier manifest lists, without names that could leave the prefix."""
    files = manifest.get("files")
    names = files if isinstance(files, dict) else {}
    return {name for name in names if name and not any(part in {"", ".", ".."} for part in name.split("/"))}


def _ignore(_done: int) -> None:
    pass
