"""A forward proxy on loopback: CONNECT tunnels, plain requests in absolute form, passwords, TLS and faults."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class ForwardProxy:
    """The behavior of a proxy, and the requests that it has seen.

    `routes` maps a host name to the port of a server on loopback; other hosts are reached as they are written. With an
    `authorization`, requests without it get status 407. `faults` are statuses for the first requests.
    """

    routes: dict[str, int] = field(default_factory=dict)
    authorization: str | None = None
    faults: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a server."""
        if host in self.routes:
            return socket.create_connection(("127.0.0.1", self.routes[host]), 5)
        return socket.create_connection((host, port), 5)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, proxy: ForwardProxy, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.context = context


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            client = self.request
            if self.server.context is not None:
                client = self.server.context.wrap_socket(client, server_side=True)
            with client:
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        proxy = self.server.proxy
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            received = client.recv(1)
            if not received:
                return
            head += received
        line, *rest = head.decode("latin-1").strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in rest)}
        proxy.lines.append(line)
        proxy.fields.append(fields)
        if proxy.faults:
            _respond(client, proxy.faults.pop(0))
        elif proxy.authorization is not None and fields.get("proxy-authorization") != proxy.authorization:
            _respond(client, 407)
        elif line.startswith("CONNECT "):
            host, _, port = line.split(" ")[1].rpartition(":")
            with proxy.connect(host.strip("[]"), int(port)) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                _exchange(client, server)
        else:
            method, target, version = line.split(" ")
            url = urlsplit(target)
            plain = re.sub(rb"(?im)^proxy-authorization:[^\r\n]*\r\n", b"", head)
            origin = url._replace(scheme="", netloc="").geturl() or "/"
            with proxy.connect(url.hostname or "", url.port or 80) as server:
                _, _, remaining = plain.partition(b"\r\n")
                server.sendall(f"{method} {origin} {version}\r\n".encode() + remaining)
                _exchange(client, server)


def _respond(client: socket.socket, status: int) -> None:
    client.sendall(f"HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _exchange(client: socket.socket, server: socket.socket) -> None:
    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
    back.start()
    _pump(client, server)
    back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxying(proxy: ForwardProxy, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run the proxy and yield its URL, over TLS with a `context`."""
    with _Server(proxy, context) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            scheme, host = ("http", "127.0.0.1") if context is None else ("https", "localhost")
            yield f"{scheme}://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
