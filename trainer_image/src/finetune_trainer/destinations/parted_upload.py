"""Sends a large file to an object store in parts, and goes on with the parts that an earlier process has sent.

The id of an upload is written down before its first part. Only this job knows it, and the store compares each part with a
checksum, so a part that the store lists under this id is a part of this file.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING

from finetune_trainer.errors import StageError
from finetune_trainer.sources.retry import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from finetune_trainer.destinations.http_client import HttpClient
    from finetune_trainer.destinations.journal import UploadJournal
    from finetune_trainer.destinations.local_artifact import LocalFile
    from finetune_trainer.destinations.part_store import PartStore
    from finetune_trainer.destinations.publisher import OnBytes

_log = logging.getLogger(__name__)
PART_BYTES = 16 << 20
_MAXIMUM_PARTS = 9_000  # stores take 10,000
_WORKERS = 4
_REPORT_SECONDS = 1.0

Opened = AbstractContextManager[tuple["HttpClient", "PartStore"]]


def part_bytes(size: int) -> int:
    """Return the size of the parts of a file, the same at every try."""
    return max(PART_BYTES, -(-size // _MAXIMUM_PARTS))


class _StoppedError(Exception):
    """Another part has failed for good."""


class PartedUpload:
    """One file on its way to an object. `opened` makes connections for one thread."""

    def __init__(
        self,
        opened: Callable[[], Opened],
        key: str,
        file: LocalFile,
        journal: UploadJournal,
        on_sent: OnBytes,
    ) -> None:
        self._opened = opened
        self._key = key
        self._file = file
        self._journal = journal
        self._on_sent = on_sent
        self._part = part_bytes(file.bytes)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._names: dict[int, str] = {}
        self._left: list[int] = []

    def send(self) -> None:
        """Send the parts that the store lacks, and make the object. Raises StageError."""
        with ExitStack() as stack:
            client, store = stack.enter_context(self._opened())
            upload = self._resume(client, store)
            count = -(-self._file.bytes // self._part)
            self._left = [number for number in range(count, 0, -1) if number not in self._names]
            others = [stack.enter_context(self._opened()) for _ in range(min(_WORKERS, len(self._left)) - 1)]
            self._send_parts(upload, [(client, store), *others])
            names = [self._names[number] for number in range(1, count + 1)]
            client.retried(lambda: store.finish(self._key, upload, names), waiting=self._report)

    def _resume(self, client: HttpClient, store: PartStore) -> str:
        """Return the id of the unfinished upload of this file, with its parts, or of a new one."""
        begun = self._journal.begun(self._file.name, self._file.digest)
        if begun is not None:
            parts = self._parts(client, store, begun)
            if parts is not None:
                sizes = {number: self._size(number) for number in parts}
                self._names = {
                    number: name for number, (name, size) in parts.items() if size == sizes[number]
                }
                _log.info("%s: %d parts have arrived before", self._file.name, len(self._names))
                return begun
        upload = client.retried(lambda: store.begin(self._key), waiting=self._report)
        self._journal.begin(self._file.name, self._file.digest, upload)
        return upload

    def _parts(self, client: HttpClient, store: PartStore, upload: str) -> dict[int, tuple[str, int]] | None:
        try:
            return client.retried(lambda: store.parts(self._key, upload), waiting=self._report)
        except StageError as error:
            # A policy may allow to write parts and not to list them. The upload begins again, and this one is given up.
            _log.warning(
                "%s: the parts that have arrived cannot be listed: %s", self._file.name, error.message
            )
        try:
            store.abort(self._key, upload)
        except (Outage, StageError) as error:
            # Such a policy may deny this, too, and the parts only cost space.
            _log.warning("%s: the upload before cannot be given up: %s", self._file.name, error)
        return None

    def _send_parts(self, upload: str, stores: list[tuple[HttpClient, PartStore]]) -> None:
        with ThreadPoolExecutor(len(stores)) as threads:
            futures = [threads.submit(self._work, upload, client, store) for client, store in stores]
            try:
                self._await(futures)
            finally:
                self._stop.set()

    def _await(self, futures: list[Future[None]]) -> None:
        """Wait for all parts and report them; raise the first failure."""
        pending: Collection[Future[None]] = futures
        while pending:
            done, pending = wait(pending, _REPORT_SECONDS, FIRST_EXCEPTION)
            for future in done:
                future.result()
            self._report()

    def _work(self, upload: str, client: HttpClient, store: PartStore) -> None:
        """Send parts until none is left."""

        def waiting() -> None:
            if self._stop.is_set():
                raise _StoppedError

        with self._file.path.open("rb") as file:
            while not self._stop.is_set():
                with self._lock:
                    if not self._left:
                        return
                    number = self._left.pop()
                file.seek((number - 1) * self._part)
                content = file.read(self._size(number))
                put = partial(store.put, self._key, upload, number, content)
                name = client.retried(put, waiting=waiting)
                with self._lock:
                    self._names[number] = name

    def _size(self, number: int) -> int:
        """Return the bytes of a part; the last one has the rest."""
        return max(0, min(self._part, self._file.bytes - (number - 1) * self._part))

    def _report(self) -> None:
        with self._lock:
            arrived = sum(self._size(number) for number in self._names)
        self._on_sent(arrived)


def abort_others(store: PartStore, prefix: str, keys: Collection[str], kept: Collection[str]) -> None:
    """Give up unfinished uploads of these keys except the ids `kept`, which nobody would finish any more.

    It is tried once, and a store that does not list them is left alone: the parts only cost space.
    """
    try:
        for key, upload in store.unfinished(prefix):
            if key in keys and upload not in kept:
                store.abort(key, upload)
    except (Outage, StageError) as error:
        _log.warning("unfinished uploads cannot be given up: %s", error)
