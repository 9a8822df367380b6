"""The open connections of the telemetry server: few, short, and never waited for."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.telemetry.http import LARGEST_REQUEST, Page, respond

LARGEST_NUMBER = 64
"""Connections that are open at once. A further one takes the place of the oldest."""
LONGEST_SECONDS = 5.0
"""Time from a connection to the last byte of its response."""


@dataclass
class _Connection:
    socket: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    response: memoryview | None = None


class Connections:
    """Reads requests and writes responses as far as the network takes them at once.

    Memory, descriptors and time of all clients together are bounded, whatever they send or do not read.
    """

    def __init__(self, selector: selectors.BaseSelector, pages: Mapping[str, Page]) -> None:
        self._selector = selector
        self._pages = pages
        self._open: dict[int, _Connection] = {}  # the oldest comes first

    def __len__(self) -> int:
        return len(self._open)

    def add(self, client: socket.socket, now: float) -> None:
        """Take a new connection and serve it as far as possible; `now` is a monotonic time in seconds."""
        if len(self._open) >= LARGEST_NUMBER:
            self.drop_oldest()
        client.setblocking(False)
        connection = _Connection(client, now + LONGEST_SECONDS)
        self._open[client.fileno()] = connection
        self._selector.register(client, selectors.EVENT_READ, connection)
        self.serve(connection)

    def serve(self, connection: _Connection) -> None:
        """Read or write what is possible without waiting. An error of the network ends the connection."""
        try:
            if connection.response is None:
                self._read(connection)
            if connection.response is not None:
                self._write(connection, connection.response)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(connection)

    def expire(self, now: float) -> None:
        """Drop the connections whose time is over."""
        while self._open:
            oldest = next(iter(self._open.values()))
            if now < oldest.deadline:
                return
            self._drop(oldest)

    def drop_oldest(self) -> None:
        """Drop the connection that is open for the longest time, if there is one."""
        for connection in self._open.values():
            self._drop(connection)
            return

    def close(self) -> None:
        """Drop all connections."""
        while self._open:
            self.drop_oldest()

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(LARGEST_REQUEST - len(connection.received))
        if not data:
            self._drop(connection)
            return
        connection.received += data
        response = respond(bytes(connection.received), self._pages)
        if response is not None:
            connection.response = memoryview(response)

    def _write(self, connection: _Connection, response: memoryview) -> None:
        sent = connection.socket.send(response)
        if sent == len(response):
            connection.socket.shutdown(socket.SHUT_WR)
            self._drop(connection)
            return
        connection.response = response[sent:]
        self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)

    def _drop(self, connection: _Connection) -> None:
        del self._open[connection.socket.fileno()]
        self._selector.unregister(connection.socket)
        connection.socket.close()
