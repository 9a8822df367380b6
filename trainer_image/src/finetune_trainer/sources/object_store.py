"""Datasets and models in S3-compatible stores, Google Cloud Storage and Azure Blob Storage, through obstore."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import DATASET, MODEL, FetchTarget
from finetune_trainer.sources.http import Limits
from finetune_trainer.sources.model import is_small_file, weight_files
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.sources.retry import DEFAULT_RETRY_SECONDS, Outage, RetryPolicy
from finetune_trainer.sources.store_client import (
    LIBRARY_ERRORS,
    Changed,
    Store,
    interpret_error,
)
from finetune_trainer.sources.store_connection import StoreConnection
from finetune_trainer.sources.transfer import OnBytes

_CHUNK_BYTES = 1 << 20
_MODEL_SECONDS = 7 * 86400.0  # a weight file may take long; the read timeout ends a stalled one


@dataclass(frozen=True)
class _Request:
    """An object to fetch and its bounds: largest size in bytes, deadline of time.monotonic.

    `etag` and `size` are those of an earlier listing; None if there was none.
    """

    key: str
    etag: str | None
    size: int | None
    maximum_bytes: int | None
    deadline: float


class _Client(StoreConnection):
    """Downloads from one bucket."""

    def download(
        self,
        request: _Request,
        destination: Path,
        on_bytes: OnBytes,
        waiting: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Fetch an object and return its ETag, version and size. An interrupted download is resumed.

        `waiting` is called while an outage is waited for; by default `on_bytes` is, with the bytes done so far.
        """
        partial = PartialFile(destination, f"{self.source.endpoint or ''} {self.source.uri} {request.key}")
        identity = partial.finished()
        if identity is not None and request.etag in {None, identity.get("etag")}:
            return identity
        transfer = _Transfer(partial, request, self.target, on_bytes)
        with self.connected() as (store, egress):
            self.retried(
                lambda: transfer.attempt(store),
                egress,
                waiting or transfer.waiting,
                progress=lambda: transfer.done,
                deadline=request.deadline,
            )
        return transfer.finish()

    def list(self, waiting: Callable[[], None]) -> dict[str, tuple[int, str | None]]:
        """Size and ETag of the objects directly below the prefix, by name."""
        with self.connected() as (store, egress):
            found = self.retried(
                lambda: obstore.list_with_delimiter(store, self.uri.key)["objects"],
                egress,
                waiting,
            )
        return {
            entry["path"].rsplit("/", 1)[1]: (entry["size"], _plain(entry["e_tag"]))
            for entry in found
            if entry["path"].startswith(f"{self.uri.key}/")
        }


class _Transfer:
    """State of one object's download across attempts."""

    def __init__(
        self, partial: PartialFile, request: _Request, target: FetchTarget, on_bytes: OnBytes
    ) -> None:
        self._partial = partial
        self._request = request
        self._target = target
        self._on_bytes = on_bytes
        self._identity: dict[str, Any] = {}
        self._version: Version | None = None
        self._total: int | None = None
        self.done = 0
        resumable = partial.resumable()
        if resumable is None:
            partial.begin(None)
        else:
            self._version, self.done = resumable

    def waiting(self) -> None:
        """Report the progress again, so that an outage does not look like a stage that hangs."""
        self._on_bytes(self.done, self._total)

    def attempt(self, store: Store) -> None:
        """Receive the bytes that the file lacks. Raises the library's errors, Outage and StageError."""
        self._require_time()
        try:
            self._receive(self._get(store))
        except LIBRARY_ERRORS as error:
            if isinstance(interpret_error(error, self._target, ambient=False), Changed):
                self._reset()
            raise

    def finish(self) -> dict[str, Any]:
        """Move the file to its destination and return its identity."""
        self._partial.finish(self._identity)
        return self._identity

    def _get(self, store: Store) -> Any:
        if self._version is None or not self.done:
            return obstore.get(store, self._request.key)
        # If all bytes are here, the last one is requested again: every store rejects an empty range.
        offset = min(self.done, (self._version.length or self.done + 1) - 1)
        options: Any = {"range": {"offset": offset}, "if_match": self._version.etag}
        result = obstore.get(store, self._request.key, options=options)
        with self._partial.path.open("rb+") as file:
            file.truncate(offset)
        self.done = offset
        return result

    def _receive(self, result: Any) -> None:
        meta = result.meta
        etag, size = meta["e_tag"], int(meta["size"])
        self._total = size
        listed_etag, listed_size = self._request.etag, self._request.size
        # Some stores name an ETag in one of the two responses only.
        other_etag = None not in {etag, listed_etag} and _plain(etag) != listed_etag
        if other_etag or listed_size not in {None, size}:
            raise StageError(
                self._target.unavailable,
                f"the {self._target.name}'s files must not change during the download, found a new version of "
                f"{self._request.key.rsplit('/', 1)[-1]}; create the job again",
            )
        self._require_size(size)
        if int(result.range[0]) != self.done:
            self._reset()
            raise Outage("another part of the object than was requested")
        if not self.done:
            strong = isinstance(etag, str) and not etag.startswith("W/")
            self._version = Version(etag, size) if strong else None
            self._partial.begin(self._version)
        self._identity = {"etag": _plain(etag), "version": meta["version"], "bytes": size}
        with self._partial.path.open("ab") as file:
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                file.write(chunk)
                self.done += len(chunk)
                self._require_size(self.done)
                self._require_time()
                self._on_bytes(self.done, size)
        if self.done != size:
            raise Outage(f"{self.done} of {size} bytes")

    def _reset(self) -> None:
        self._version, self.done = None, 0
        self._partial.begin(None)

    def _require_time(self) -> None:
        if time.monotonic() > self._request.deadline:
            raise StageError(
                self._target.unavailable,
                f"the {self._target.name}'s download must end in time, found it still running after "
                f"{self.done} bytes; use a nearer store or raise trainer.limits.downloadSeconds",
            )

    def _require_size(self, size: int) -> None:
        maximum = self._request.maximum_bytes
        if maximum is not None and size > maximum:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {maximum} bytes, found {size}; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )


def download_object(
    source: ObjectStoreSource,
    destination: Path,
    limits: Limits,
    on_bytes: OnBytes,
    environment: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Fetch a dataset's object into `destination` and return its identity: kind, URI, ETag, version and size.

    If an attempt or a killed process left bytes of the same ETag, the download resumes with a range request. Unless
    private addresses are allowed, `egress` makes every connection and checks its address. Credentials and network
    settings come from `environment`. Raises StageError with a reason that starts with `Dataset`, or with
    InvalidNetworkSettings.
    """
    client = _Client(
        source,
        DATASET,
        environment,
        allow_private=limits.allow_private_addresses,
        seconds=limits.seconds,
        network=Network.from_environment(environment, RetryPolicy(limits.retry_seconds, sleep)),
    )
    request = _Request(client.uri.key, None, None, limits.bytes, time.monotonic() + limits.seconds)
    return {"kind": "ObjectStore", "uri": source.uri, **client.download(request, destination, on_bytes)}


class ObjectStoreModel:
    """A model below a prefix of a bucket. Downloaded files live in `folder` and are deleted when released."""

    commit: str | None = None

    def __init__(
        self,
        source: ObjectStoreSource,
        folder: Path,
        *,
        allow_private_addresses: bool,
        environment: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
        retry_seconds: float = DEFAULT_RETRY_SECONDS,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """List the prefix and download the small files.

        `retry_seconds` is the time to wait for the store in an outage. `waiting` is called then, until the small
        files are there. Raises
        StageError with ModelNotFound, ModelAccessDenied, ModelUnavailable, ModelAddressForbidden,
        InvalidNetworkSettings or a reason of `weight_files`.
        """
        self._source = source
        self._folder = folder
        self._client = _Client(
            source,
            MODEL,
            environment,
            allow_private=allow_private_addresses,
            seconds=_MODEL_SECONDS,
            network=Network.from_environment(environment, RetryPolicy(retry_seconds, sleep)),
        )
        self._files = self._client.list(waiting)
        if not self._files:
            raise StageError(
                Reason.MODEL_NOT_FOUND,
                "model.source's uri must be the prefix of a model's files, found no object below it; check the uri",
            )
        names = sorted(self._files)
        self._small = [self._download(name, _ignore, waiting) for name in names if is_small_file(name)]
        self._weights = weight_files(names, lambda name: (folder / name).read_bytes())

    def identity(self) -> dict[str, Any]:
        """Return the URI and each file's size and ETag; a changed file makes another model."""
        return {
            "kind": "ObjectStore",
            "uri": self._source.uri,
            "endpoint": self._source.endpoint,
            "files": {name: [size, etag] for name, (size, etag) in sorted(self._files.items())},
        }

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and other small files."""
        return self._small

    def weight_files(self) -> list[str]:
        """Names of the weight files, sorted."""
        return self._weights

    def fetch(self, name: str, on_bytes: OnBytes) -> Path:
        """Download a weight file; an interrupted download is resumed."""
        on_bytes(0, self._files[name][0])
        return self._download(name, on_bytes)

    def release(self, name: str) -> None:
        """Delete a downloaded weight file."""
        (self._folder / name).unlink(missing_ok=True)

    def _download(self, name: str, on_bytes: OnBytes, waiting: Callable[[], None] | None = None) -> Path:
        destination = self._folder / name
        size, etag = self._files[name]
        key = f"{self._client.uri.key}/{name}"
        request = _Request(key, etag, size, None, time.monotonic() + _MODEL_SECONDS)
        self._client.download(request, destination, on_bytes, waiting)
        return destination


def _plain(etag: str | None) -> str | None:
    """Return an ETag without quotes: the same store quotes it in some responses only."""
    return None if etag is None else etag.removeprefix("W/").strip('"')


def _ignore(_done: int, _total: int | None) -> None:
    """Ignore progress: small files show none."""
