"""A proxy for libraries that open their own connections; it connects to public addresses only.

The library uses this process as its HTTP proxy. The proxy accepts only CONNECT, resolves the name, checks the
addresses and connects to one of the allowed ones. So neither a redirect nor a name that resolves differently the next
time reaches a private address. TLS runs between library and server.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.sources.addresses import allowed_addresses

CONNECT_SECONDS = 5.0
_HEAD_BYTES = 8192
_CHUNK_BYTES = 1 << 18
_CONNECT = re.compile(rb"CONNECT (\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+):([0-9]{1,5}) HTTP/1\.[01]\r\n")


class Egress(socketserver.ThreadingTCPServer):
    """The proxy, listening on loopback. `blocked` is true after it denied a connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.blocked = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the proxy."""
        return "127.0.0.1", int(self.server_address[1])

    @property
    def url(self) -> str:
        """URL of the proxy."""
        host, port = self.address
        return f"http://{host}:{port}"


@contextmanager
def public_egress() -> Iterator[Egress]:
    """Run the proxy while the context lasts."""
    with Egress() as egress:
        thread = threading.Thread(target=egress.serve_forever, args=(0.05,), name="egress", daemon=True)
        thread.start()
        try:
            yield egress
        finally:
            egress.shutdown()


class _Tunnel(socketserver.BaseRequestHandler):
    """One connection: CONNECT, then bytes in both directions until either side ends."""

    server: Egress
    request: socket.socket

    def handle(self) -> None:
        """Connect to the requested server, if that is allowed, and forward bytes."""
        self.request.settimeout(CONNECT_SECONDS)
        head = b""
        # If the client has disconnected, nobody can receive an error.
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
                received = self.request.recv(_HEAD_BYTES)
                if not received:
                    return
                head += received
            match = _CONNECT.match(head)
            if match is None:
                self.server.blocked = True
                self._respond("403 Forbidden")
                return
            upstream = self._connect(match[1].decode("ascii").strip("[]"), int(match[2]))
            if upstream is not None:
                with upstream:
                    self._respond("200 Connection established")
                    self._relay(upstream)

    def _connect(self, host: str, port: int) -> socket.socket | None:
        try:
            addresses = allowed_addresses(host, port, allow_private=False)
        except (OSError, UnicodeError):
            self._respond("502 Bad Gateway")
            return None
        if not addresses:
            self.server.blocked = True
            self._respond("403 Forbidden")
            return None
        for address in addresses:
            try:
                return socket.create_connection((address, port), CONNECT_SECONDS)
            except OSError:
                continue
        self._respond("502 Bad Gateway")
        return None

    def _respond(self, status: str) -> None:
        self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    def _relay(self, upstream: socket.socket) -> None:
        # The library sets its own timeouts. If one side closes, both directions end.
        self.request.settimeout(None)
        upstream.settimeout(None)
        back = threading.Thread(target=_pump, args=(upstream, self.request), daemon=True)
        back.start()
        _pump(self.request, upstream)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Forward bytes until `source` ends, then close both sides."""
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(view[:count])
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
