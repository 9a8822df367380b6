"""Datasets and models in S3-compatible stores, Google Cloud Storage and Azure Blob Storage, through obstore."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from finetune_trainer.contract.run_spec import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.egress import Egress, public_egress
from finetune_trainer.sources.http import PAUSES_SECONDS, TRIES, Limits, OnBytes
from finetune_trainer.sources.model import is_small_file, weight_files
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.sources.store_client import (
    LIBRARY_ERRORS,
    Changed,
    Outage,
    Place,
    Store,
    check_endpoint,
    explain,
    open_store,
)
from finetune_trainer.sources.subject import DATASET, MODEL, Subject

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MODEL_SECONDS = 7 * 86400.0  # a weight file may take long; a stalled one ends by the read time-out


@dataclass(frozen=True)
class _Wanted:
    """What to fetch within which bounds: largest size in bytes, deadline of time.monotonic."""

    key: str
    etag: str | None
    maximum_bytes: int | None
    deadline: float


class _Client:
    """One bucket, with the rules of its subject."""

    def __init__(
        self,
        source: ObjectStoreSource,
        subject: Subject,
        environment: Mapping[str, str],
        *,
        allow_private: bool,
        seconds: float,
        sleep: Callable[[float], None],
    ) -> None:
        self.place = Place.parse(source.uri, subject)
        self._source = source
        self._subject = subject
        self._environment = environment
        self._allow_private = allow_private
        self._seconds = seconds
        self._sleep = sleep
        if source.endpoint is not None:
            check_endpoint(source.endpoint, subject, allow_private=allow_private)

    def download(self, wanted: _Wanted, target: Path, on_bytes: OnBytes) -> dict[str, Any]:
        """Fetch an object, going on where an earlier try or process stopped; return its ETag, version and size."""
        partial = PartialFile(target, f"{self._source.endpoint or ''} {self._source.uri} {wanted.key}")
        identity = partial.finished()
        if identity is not None and wanted.etag in {None, identity.get("etag")}:
            return identity
        transfer = _Transfer(partial, wanted, self._subject, on_bytes)
        with self._connected() as (store, egress):
            self._retried(lambda: transfer.attempt(store), egress, lambda: transfer.done)
        return transfer.finish()

    def list(self) -> dict[str, tuple[int, str | None]]:
        """Size and ETag of the objects directly below the prefix, by name."""
        with self._connected() as (store, egress):
            found = self._retried(
                lambda: obstore.list_with_delimiter(store, self.place.key)["objects"], egress, lambda: 0
            )
        return {
            entry["path"].rsplit("/", 1)[1]: (entry["size"], _plain(entry["e_tag"]))
            for entry in found
            if entry["path"].startswith(f"{self.place.key}/")
        }

    @contextmanager
    def _connected(self) -> Iterator[tuple[Store, Egress | None]]:
        if self._allow_private:
            yield self._open(None), None
            return
        with public_egress() as egress:
            yield self._open(egress), egress

    def _open(self, egress: Egress | None) -> Store:
        return open_store(self._source, self.place, self._subject, self._environment, egress, self._seconds)

    def _retried(self, action: Callable[[], Any], egress: Egress | None, progress: Callable[[], int]) -> Any:
        """Run a call to the store; three tries without progress end it. Raises StageError."""
        ambient = self._source.credentials_prefix is None
        failures, best = 0, progress()
        while True:
            try:
                return action()
            except (*LIBRARY_ERRORS, Outage) as error:
                fault = error if isinstance(error, Outage) else explain(error, self._subject, ambient=ambient)
                if egress is not None and egress.refused:
                    raise self._subject.forbidden_address() from None
                if isinstance(fault, StageError):
                    raise fault from None
                failures = 1 if progress() > best else failures + 1
                best = max(best, progress())
                found = "another version of the object" if isinstance(fault, Changed) else str(fault)
                _log.warning("%s: try %d of %d failed (%s)", self._subject.name, failures, TRIES, found)
                if failures >= TRIES:
                    if isinstance(fault, Outage) and fault.ending is not None:
                        raise fault.ending from None
                    raise StageError(
                        self._subject.unavailable,
                        f"the {self._subject.name}'s store must send it, found after {TRIES} tries: {found}; "
                        "check that it is up and reachable from the cluster",
                    ) from None
                asked = fault.pause_seconds if isinstance(fault, Outage) else 0.0
                self._sleep(max(PAUSES_SECONDS[failures - 1], asked))


class _Transfer:
    """One object on its way to a file, across tries."""

    def __init__(self, partial: PartialFile, wanted: _Wanted, subject: Subject, on_bytes: OnBytes) -> None:
        self._partial = partial
        self._wanted = wanted
        self._subject = subject
        self._on_bytes = on_bytes
        self._identity: dict[str, Any] = {}
        self._version: Version | None = None
        self.done = 0
        resumable = partial.resumable()
        if resumable is None:
            partial.begin(None)
        else:
            self._version, self.done = resumable

    def attempt(self, store: Store) -> None:
        """Take the object's bytes from where the file stands. Raises the library's errors and StageError."""
        try:
            self._take(self._ask(store))
        except LIBRARY_ERRORS as error:
            if isinstance(explain(error, self._subject, ambient=False), Changed):
                self._forget()
            raise

    def finish(self) -> dict[str, Any]:
        """Put the file in its place and return its identity."""
        self._partial.finish(self._identity)
        return self._identity

    def _ask(self, store: Store) -> Any:
        if self._version is None or not self.done:
            return obstore.get(store, self._wanted.key)
        # The last byte is asked for again where all are here: an empty range is an error to every store.
        offset = min(self.done, (self._version.length or self.done + 1) - 1)
        options: Any = {"range": {"offset": offset}, "if_match": self._version.etag}
        result = obstore.get(store, self._wanted.key, options=options)
        with self._partial.path.open("rb+") as file:
            file.truncate(offset)
        self.done = offset
        return result

    def _take(self, result: Any) -> None:
        meta = result.meta
        etag, size = meta["e_tag"], int(meta["size"])
        if self._wanted.etag is not None and _plain(etag) != self._wanted.etag:
            raise StageError(
                self._subject.unavailable,
                f"the {self._subject.name}'s files must not change while they are read, found another "
                f"{self._wanted.key.rsplit('/', 1)[-1]}; create the job again",
            )
        self._require_size(size)
        if int(result.range[0]) != self.done:
            self._forget()
            raise Outage("another part of the object than was asked for")
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
                if time.monotonic() > self._wanted.deadline:
                    raise StageError(
                        self._subject.unavailable,
                        f"the {self._subject.name}'s download must end in time, found it still going after "
                        f"{self.done} bytes; use a nearer store or raise trainer.limits.downloadSeconds",
                    )
                self._on_bytes(self.done, size)
        if self.done != size:
            raise Outage(f"{self.done} of {size} bytes")

    def _forget(self) -> None:
        self._version, self.done = None, 0
        self._partial.begin(None)

    def _require_size(self, size: int) -> None:
        maximum = self._wanted.maximum_bytes
        if maximum is not None and size > maximum:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {maximum} bytes, found {size}; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )


def download_object(
    source: ObjectStoreSource,
    target: Path,
    limits: Limits,
    on_bytes: OnBytes,
    environment: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Fetch a dataset's object into `target` and return which bytes these are: kind, URI, ETag, version and size.

    Goes on by range where a try, or a killed process, left bytes of the same ETag. Without allowed private
    addresses every connection is made by `egress`, which checks the address itself. Raises StageError with a
    reason that starts with `Dataset`.
    """
    client = _Client(
        source,
        DATASET,
        environment,
        allow_private=limits.allow_private_addresses,
        seconds=limits.seconds,
        sleep=sleep,
    )
    wanted = _Wanted(client.place.key, None, limits.bytes, time.monotonic() + limits.seconds)
    return {"kind": "ObjectStore", "uri": source.uri, **client.download(wanted, target, on_bytes)}


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
    ) -> None:
        """List the prefix and download the small files.

        Raises StageError with ModelNotFound, ModelAccessDenied, ModelUnavailable, ModelAddressForbidden or what
        `weight_files` finds.
        """
        self._source = source
        self._folder = folder
        self._client = _Client(
            source,
            MODEL,
            environment,
            allow_private=allow_private_addresses,
            seconds=_MODEL_SECONDS,
            sleep=sleep,
        )
        self._files = self._client.list()
        if not self._files:
            raise StageError(
                Reason.MODEL_NOT_FOUND,
                "model.source's uri must name the prefix of a model's files, found no object below it; check it",
            )
        names = sorted(self._files)
        self._small = [self._download(name, _ignore) for name in names if is_small_file(name)]
        self._weights = weight_files(names, lambda name: (folder / name).read_bytes())

    def identity(self) -> dict[str, Any]:
        """URI, and each file's size and ETag: a changed file is another model."""
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
        """Download a weight file; an interrupted download goes on where it stood."""
        on_bytes(0, self._files[name][0])
        return self._download(name, on_bytes)

    def release(self, name: str) -> None:
        """Delete a downloaded weight file."""
        (self._folder / name).unlink(missing_ok=True)

    def _download(self, name: str, on_bytes: OnBytes) -> Path:
        target = self._folder / name
        wanted = _Wanted(
            f"{self._client.place.key}/{name}", self._files[name][1], None, time.monotonic() + _MODEL_SECONDS
        )
        self._client.download(wanted, target, on_bytes)
        return target


def _plain(etag: str | None) -> str | None:
    """An ETag without quotes: the same store quotes it in one answer and not in another."""
    return None if etag is None else etag.removeprefix("W/").strip('"')


def _ignore(_done: int, _total: int | None) -> None:
    """Progress of small files is not shown."""
