"""The current progress over HTTP: `/progress` as JSON and `/metrics` for Prometheus.

One thread serves all clients and takes at most a small share of one core, so that no scraper slows the run.
"""

from __future__ import annotations

import errno
import json
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from finetune_trainer.telemetry.background import RETRY_SECONDS, BackgroundTask
from finetune_trainer.telemetry.connections import Connections
from finetune_trainer.telemetry.http import Page
from finetune_trainer.telemetry.metrics import render_metrics

_log = logging.getLogger(__name__)

PORTS_TRIED = 10
LARGEST_SHARE = 0.02
"""Share of a core that the thread may use. Python runs one thread at a time, so the run loses at most this share."""
_ACCEPTED_AT_ONCE = 4
_ALL_IPV4, _ALL_IPV6 = "0.0.0.0", "::"  # noqa: S104 -- what the run spec names, since pods are scraped on their IP
_WAITING_CLIENTS = 128
_LONGEST_WAIT_SECONDS = 1.0

Document = Callable[[], dict[str, Any]]
"""Returns the current progress document of contract/progress.schema.json; called from the server's thread."""


class TelemetryServer:
    """Serves a progress document on the first free port of ten.

    No method raises. If no port is free, or the thread ends, the server tries again later. Each kind of trouble costs
    few log lines.
    """

    def __init__(self, host: str, first_port: int, document: Document) -> None:
        self._host = host
        self._first_port = first_port
        self._pages: dict[str, Page] = {
            "/progress": ("application/json", lambda: json.dumps(document(), allow_nan=False).encode()),
            "/metrics": (CONTENT_TYPE_LATEST, lambda: render_metrics(document())),
        }
        self._searched = False
        self._stop = _Stop()
        self._listener = self._listen()
        self._task = BackgroundTask("telemetry-http", self._serve, RETRY_SECONDS)
        self._task.request(urgent=True)
        self.supervise()

    @property
    def port(self) -> int | None:
        """Port that serves the progress; None if nothing is served."""
        listener = self._listener
        return None if listener is None else listener.port

    def supervise(self) -> None:
        """Start the server's thread if it does not run."""
        self._task.supervise()

    def close(self) -> None:
        """Stop serving and release the port."""
        self._stop.set()
        listener = self._listener
        if listener is not None:
            listener.wake()
        self._task.close(timeout=2 * _LONGEST_WAIT_SECONDS)
        self._release()

    def _serve(self) -> None:
        """Serve until the server is closed. After a failure, or if no port is free, the task calls it again."""
        self._task.request()
        if self._stop.received:
            return
        self._listener = self._listener or self._listen()
        if self._listener is None:
            return
        try:
            with selectors.PollSelector() as selector:
                _Loop(self._listener, selector, self._pages, self._stop).run()
        finally:
            self._release()

    def _listen(self) -> _Listener | None:
        """Open the first usable port of ten. Only the first search logs what it finds."""
        level = logging.DEBUG if self._searched else logging.WARNING
        self._searched = True
        for port in range(self._first_port, self._first_port + PORTS_TRIED):
            try:
                listener = _Listener(self._host, port)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                _log.log(level, "telemetry: port %d cannot be used (%s)", port, reason)
                continue
            _log.info("telemetry: serving /progress and /metrics on port %d", port)
            return listener
        _log.log(
            level,
            "telemetry: no port of %d to %d is free; the run continues without telemetry and tries again",
            self._first_port,
            self._first_port + PORTS_TRIED - 1,
        )
        return None

    def _release(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.socket.close()


class _Stop:
    """Ends the thread's pauses. Unlike threading.Event, it has no lock that a thread can take to its grave."""

    def __init__(self) -> None:
        self.received = False
        self._alarm: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ask for the end."""
        self.received = True
        self._alarm.put(None)

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the request for the end."""
        if not self.received:
            with suppress(Empty):
                self._alarm.get(timeout=seconds)


class _Listener:
    """A socket that accepts clients. Raises OSError or ValueError if host or port cannot be used."""

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        # A pod may have addresses of one family only, or of both.
        if host == _ALL_IPV4 and socket.has_dualstack_ipv6():
            try:
                self.socket = _listening(_ALL_IPV6, port)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                self.socket = _listening(host, port)
        else:
            self.socket = _listening(host, port)

    def wake(self) -> None:
        """Let the thread that waits for clients return."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that accepts clients. One for all addresses of IPv6 accepts those of IPv4, too."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A stage that follows another one in the same pod gets the same port.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == _ALL_IPV6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind((host, port))
        opened.listen(_WAITING_CLIENTS)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


class _Loop:
    """One thread's work: waits for clients and serves them, within its share of a core."""

    def __init__(
        self,
        listener: _Listener,
        selector: selectors.BaseSelector,
        pages: Mapping[str, Page],
        stop: _Stop,
    ) -> None:
        self._listener = listener.socket
        self._selector = selector
        self._stop = stop
        self._connections = Connections(selector, pages)

    def run(self) -> None:
        """Serve until the server is closed."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while not self._stop.received:
                began = time.thread_time()
                self._turn()
                spent = time.thread_time() - began
                self._stop.wait(min(spent * (1 / LARGEST_SHARE - 1), _LONGEST_WAIT_SECONDS))
        finally:
            self._connections.close()

    def _turn(self) -> None:
        """Serve every client that is ready, and take a few new ones."""
        ready = self._selector.select(_LONGEST_WAIT_SECONDS)
        for key, _ in ready:
            if key.data is not None:
                self._connections.serve(key.data)
        if any(key.data is None for key, _ in ready):
            self._accept()
        self._connections.expire(time.monotonic())

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # The process has no descriptor left, or the client is gone. Waiting clients keep the listener ready.
                self._connections.drop_oldest()
                self._stop.wait(_LONGEST_WAIT_SECONDS)
                return
            self._connections.add(client, time.monotonic())
