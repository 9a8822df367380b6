"""What the ranks of a run tell the process that has launched them: progress, log lines, and how they ended.

Each rank has a connection of its own to a socket of the file system. Its end is that of the process, so nothing waits for a
rank that was killed.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, Any

from finetune_trainer.telemetry.reporter import NullReporter

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

    from finetune_trainer.errors import Reason
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)
_CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """Where ranks connect, and the key that they show."""

    path: str
    key: bytes


@dataclass(frozen=True)
class Failure:
    """How a rank ended without success.

    `lost` says that it ended only because another rank was lost. `retries` says that the ranks may begin again on the next
    rung of the ladder.
    """

    reason: Reason
    message: str
    lost: bool = False
    retries: bool = False


@dataclass
class Ends:
    """The ends that ranks have told, by rank. A rank in neither was killed, or has never begun."""

    processes: dict[int, int] = field(default_factory=dict)
    """The process ids of the ranks that have begun."""
    results: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)


class Channel:
    """A rank's end of its connection. It is safe to use from several threads."""

    def __init__(self, address: Address, rank: int) -> None:
        self._connection: Connection[Any, Any] = Client(address.path, "AF_UNIX", authkey=address.key)
        self._lock = threading.Lock()
        self.send("rank", rank, os.getpid())

    def send(self, kind: str, *values: Any) -> None:
        """Send a message. Raises OSError if the launching process is gone."""
        with self._lock:
            self._connection.send((kind, *values))

    def close(self) -> None:
        """End the connection. Everything that was sent arrives."""
        self._connection.close()


class RankReporter(NullReporter):
    """Gives the progress of the first rank to the reporter of the launching process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def update(self, activity: str, step: int, total: int | None, **numbers: Any) -> None:
        """See the base class. Raises OSError if the launching process is gone: then nobody awaits the result."""
        self._channel.send("update", activity, step, total, numbers)

    def measure(self, **numbers: Any) -> None:
        """See the base class."""
        self._channel.send("measure", numbers)


class RankLog(logging.Handler):
    """Gives the log of a rank to that of the launching process, which redacts and keeps it."""

    def __init__(self, channel: Channel, rank: int) -> None:
        super().__init__()
        self._channel = channel
        self._prefix = f"rank {rank}: " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. It never raises."""
        try:
            text = self._prefix + self.format(record)
            self._channel.send("log", record.name, record.levelno, record.created, text)
        except Exception:  # noqa: BLE001 -- a line of the log ends nothing
            self.handleError(record)


class Listening:
    """Takes the messages of all ranks until the end of its `with` block, and passes progress and log on."""

    def __init__(self, progress: Reporter) -> None:
        self.ends = Ends()
        self._progress = progress
        self._key = secrets.token_bytes(32)
        self._listener = Listener(family="AF_UNIX", authkey=self._key)
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="ranks", daemon=True)

    @property
    def address(self) -> Address:
        """Where the ranks connect."""
        return Address(str(self._listener.address), self._key)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last messages. All ranks have ended by now."""
        self._closed = True
        # Nothing else wakes a thread that waits for a connection.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as waking:
            waking.connect(str(self._listener.address))
        self._accepting.join(_CLOSING_SECONDS)
        self._listener.close()
        for thread in self._threads:
            thread.join(_CLOSING_SECONDS)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, AuthenticationError) as error:
                # A rank that was killed while it connected, or another process without the key.
                if not self._closed:
                    _log.warning("a process could not connect as a rank: %s", error)
                continue
            thread = threading.Thread(target=self._read, args=(connection,), name="rank", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self, connection: Connection[Any, Any]) -> None:
        rank = -1
        with connection:
            while True:
                try:
                    kind, *values = connection.recv()
                except (EOFError, OSError):
                    return
                if kind == "rank":
                    rank, process = values
                    self.ends.processes[rank] = process
                else:
                    self._take(rank, kind, values)

    def _take(self, rank: int, kind: str, values: list[Any]) -> None:
        if kind == "update":
            activity, step, total, numbers = values
            self._progress.update(activity, step, total, **numbers)
        elif kind == "measure":
            self._progress.measure(**values[0])
        elif kind == "log":
            name, level, created, text = values
            record = logging.LogRecord(name, level, "", 0, "%s", (text,), None)
            record.created, record.msecs = created, (created % 1) * 1000
            logging.getLogger(name).handle(record)
        elif kind == "result":
            self.ends.results[rank] = values[0]
        elif kind == "failure":
            self.ends.failures[rank] = values[0]
