"""Clients that a telemetry port must survive. Each works in a thread until it is stopped, and ignores every error."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PAUSE = 0.01
_IDLE = 200


class Target:
    """A port, and whether the attack on it goes on."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.going = threading.Event()
        self.going.set()

    def connect(self) -> socket.socket:
        """Open a connection. Raises OSError if the port is closed."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=1)


def hang(target: Target) -> None:
    """Ask, and never read."""
    with target.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        while target.going.is_set():
            time.sleep(_PAUSE)


def read_slowly(target: Target) -> None:
    """Read a byte a second, with a small receive buffer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256)
        client.settimeout(1)
        client.connect(("127.0.0.1", target.port))
        client.sendall(b"GET /progress HTTP/1.1\r\n\r\n")
        while target.going.is_set():
            client.recv(1)
            time.sleep(1)


def send_slowly(target: Target) -> None:
    """Send a header a byte at a time, so that the request never ends."""
    with target.connect() as client:
        for byte in itertools.cycle(b"X: y\r\n"):
            if not target.going.is_set():
                return
            client.sendall(bytes([byte]))
            time.sleep(_PAUSE)


def send_garbage(target: Target) -> None:
    """Send random bytes, then endless headers."""
    drawn = random.Random(3)  # noqa: S311 -- no secret
    with target.connect() as client:
        client.sendall(drawn.randbytes(4096))
    with target.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        while target.going.is_set():
            client.sendall(b"X-Header: " + b"a" * 8000 + b"\r\n")
            time.sleep(_PAUSE)


def idle(target: Target) -> None:
    """Open many connections without a request."""
    clients: list[socket.socket] = []
    try:
        while target.going.is_set():
            clients.append(target.connect())
            if len(clients) >= _IDLE:
                clients.pop(0).close()
            time.sleep(_PAUSE)
    finally:
        for client in clients:
            client.close()


def scrape(target: Target) -> None:
    """Scrape again and again, as a wrongly configured Prometheus does."""
    while target.going.is_set():
        with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=5) as response:
            response.read()
        time.sleep(_PAUSE)


ATTACKS: tuple[Callable[[Target], None], ...] = (
    hang,
    read_slowly,
    send_slowly,
    send_garbage,
    idle,
    *[scrape] * 100,
)


@contextmanager
def attack(port: int) -> Iterator[None]:
    """Run all attacks on a port at once, each again as soon as it is cut off."""
    target = Target(port)

    def repeat(once: Callable[[Target], None]) -> None:
        while target.going.is_set():
            with suppress(OSError):
                once(target)
            time.sleep(_PAUSE)

    threads = [threading.Thread(target=repeat, args=(once,), daemon=True) for once in ATTACKS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        target.going.clear()
        for thread in threads:
            thread.join(10)
