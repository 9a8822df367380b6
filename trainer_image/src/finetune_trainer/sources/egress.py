"""A proxy for libraries that open their own connections. It applies the trainer's rules about addresses and proxies.

The library uses this process as its HTTP proxy. For a CONNECT request, the proxy resolves the name, checks the
addresses and connects to one of the allowed ones, or through the forward proxy of the network settings. So neither a
redirect nor a name that resolves differently the next time reaches a private address. TLS runs between library and
server. If private addresses are allowed, so are plain http servers, and their requests are forwarded one by one.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.sources.addresses import allowed_addresses, may_ask_proxy_for
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.proxy import Proxy

CONNECT_SECONDS = 5.0
_LINE_BYTES = 8192
_HEAD_BYTES = 65536
_CHUNK_BYTES = 1 << 18
_HOST = rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)"
_CONNECT = re.compile(rb"CONNECT " + _HOST + rb":([0-9]{1,5}) HTTP/1\.[01]\r\n")
_ABSOLUTE = re.compile(
    rb"([A-Z]{1,16}) http://" + _HOST + rb"(?::([0-9]{1,5}))?(/[^ \r\n]*)? (HTTP/1\.[01])\r\n"
)
_CONNECTION_FIELD = re.compile(rb"(?im)^(?:proxy-)?connection:[^\r\n]*\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


class Egress(socketserver.ThreadingTCPServer):
    """The proxy, listening on loopback.

    `blocked` is true after it denied a connection to a forbidden address, `proxy_blocked` after it denied one to a
    job's proxy. `proxy_status` is the last status other than success that a forward proxy gave to a CONNECT request.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, network: Network, *, allow_private: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.network = network
        self.allow_private = allow_private
        self.blocked = False
        self.proxy_blocked = False
        self.proxy_status: str | None = None

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
def public_egress(network: Network | None = None, *, allow_private: bool = False) -> Iterator[Egress]:
    """Run the proxy while the context lasts; it connects to public addresses only unless `allow_private`.

    `network` has by default no forward proxy.
    """
    with Egress(Network() if network is None else network, allow_private=allow_private) as egress:
        thread = threading.Thread(target=egress.serve_forever, args=(0.05,), name="egress", daemon=True)
        thread.start()
        try:
            yield egress
        finally:
            egress.shutdown()


class _Tunnel(socketserver.BaseRequestHandler):
    """One connection: one request, then bytes in both directions until either side ends."""

    server: Egress
    request: socket.socket

    def handle(self) -> None:
        """Connect to the requested server, if that is allowed, and forward bytes."""
        self.request.settimeout(CONNECT_SECONDS)
        # If the client has disconnected, nobody can receive an error.
        with contextlib.suppress(OSError):
            head = self._head()
            if head is None:
                return
            if match := _CONNECT.match(head):
                self._tunnel(_text(match[1]), int(match[2]))
            elif self.server.allow_private and (match := _ABSOLUTE.match(head)):
                self._forward(head, match)
            else:
                self._deny()

    def _head(self) -> bytes | None:
        """Read a request up to the end of its head; None if the client leaves."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            received = self.request.recv(_HEAD_BYTES - len(head))
            if not received:
                return None
            head += received
            if len(head) >= _LINE_BYTES and b"\r\n" not in head:
                break
        return head

    def _tunnel(self, host: str, port: int) -> None:
        proxy = self.server.network.proxies.route("https", host, port)
        upstream = self._connect(host, port) if proxy is None else self._connect_to(proxy, host, port)
        if upstream is None:
            return
        with upstream:
            if proxy is not None and not self._ask(upstream, proxy, host, port):
                self._respond("502 Bad Gateway")
                return
            self._respond("200 Connection established")
            self._relay(upstream)

    def _forward(self, head: bytes, match: re.Match[bytes]) -> None:
        """Forward a plain request. The server is told to close, because the next one may be for another server."""
        host, port = _text(match[2]), int(match[3] or 80)
        proxy = self.server.network.proxies.route("http", host, port)
        upstream = self._connect(host, port) if proxy is None else self._connect_to(proxy, host, port)
        if upstream is None:
            return
        line = match[0] if proxy is not None else b"%b %b %b\r\n" % (match[1], match[4] or b"/", match[5])
        fields, _, body = head[match.end() :].partition(b"\r\n\r\n")
        fields = _CONNECTION_FIELD.sub(b"", fields + b"\r\n")
        if proxy is not None and proxy.authorization is not None:
            fields += b"Proxy-Authorization: " + proxy.authorization + b"\r\n"
        with upstream:
            upstream.sendall(line + fields + b"Connection: close\r\n\r\n" + body)
            self._relay(upstream)

    def _connect_to(self, proxy: Proxy, host: str, port: int) -> socket.socket | None:
        """Connect to the forward proxy if it may be asked for this server."""
        allow_private = self.server.allow_private
        if not may_ask_proxy_for(host, port, allow_private=allow_private):
            self._deny()
            return None
        if proxy.from_job and not allow_private and not _has_allowed_address(proxy):
            self.server.proxy_blocked = True
            self._respond("403 Forbidden")
            return None
        upstream = self._connect(proxy.host, proxy.port, allow_private=allow_private or not proxy.from_job)
        if upstream is None or proxy.scheme != "https":
            return upstream
        try:
            return self.server.network.tls_context().wrap_socket(upstream, server_hostname=proxy.host)
        except OSError:
            upstream.close()
            self._respond("502 Bad Gateway")
            return None

    def _ask(self, upstream: socket.socket, proxy: Proxy, host: str, port: int) -> bool:
        """Ask the forward proxy for a tunnel; return whether it agrees."""
        place = b"%b:%d" % ((f"[{host}]" if ":" in host else host).encode("ascii"), port)
        fields = [b"Host: " + place]
        if proxy.authorization is not None:
            fields.append(b"Proxy-Authorization: " + proxy.authorization)
        upstream.settimeout(CONNECT_SECONDS)
        upstream.sendall(b"\r\n".join([b"CONNECT " + place + b" HTTP/1.1", *fields, b"", b""]))
        head = b""
        # Byte by byte: what follows the head belongs to the tunnel.
        while not head.endswith(b"\r\n\r\n") and len(head) < _HEAD_BYTES:
            received = upstream.recv(1)
            if not received:
                break
            head += received
        status = _STATUS_LINE.match(head)
        if status is not None and status[1].startswith(b"2"):
            return True
        self.server.proxy_status = "502" if status is None else _text(status[1])
        return False

    def _connect(self, host: str, port: int, *, allow_private: bool | None = None) -> socket.socket | None:
        allowed = self.server.allow_private if allow_private is None else allow_private
        try:
            addresses = allowed_addresses(host, port, allow_private=allowed)
        except (OSError, UnicodeError):
            self._respond("502 Bad Gateway")
            return None
        if not addresses:
            self._deny()
            return None
        for address in addresses:
            try:
                return socket.create_connection((address, port), CONNECT_SECONDS)
            except OSError:
                continue
        self._respond("502 Bad Gateway")
        return None

    def _deny(self) -> None:
        self.server.blocked = True
        self._respond("403 Forbidden")

    def _respond(self, status: str) -> None:
        self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    def _relay(self, upstream: socket.socket) -> None:
        """Forward bytes until either side ends.

        One thread serves both directions, because a TLS connection may not be read and written at the same time.
        """
        # The library sets its own timeouts.
        self.request.settimeout(None)
        upstream.settimeout(None)
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        other = {self.request: upstream, upstream: self.request}
        with selectors.DefaultSelector() as selector:
            for side in other:
                selector.register(side, selectors.EVENT_READ)
            while True:
                for source in _readable(selector, upstream):
                    count = source.recv_into(buffer)
                    if not count:
                        return
                    other[source].sendall(view[:count])


def _readable(selector: selectors.BaseSelector, upstream: socket.socket) -> list[socket.socket]:
    """Wait for bytes. Those that TLS has decrypted already are not seen by the selector."""
    if isinstance(upstream, ssl.SSLSocket) and upstream.pending():
        return [upstream]
    return [key.fileobj for key, _ in selector.select() if isinstance(key.fileobj, socket.socket)]


def _has_allowed_address(proxy: Proxy) -> bool:
    """Return whether a proxy has a public address; one that does not resolve fails later."""
    try:
        return bool(allowed_addresses(proxy.host, proxy.port, allow_private=False))
    except (OSError, UnicodeError):
        return True


def _text(value: bytes) -> str:
    return value.decode("ascii").strip("[]")
