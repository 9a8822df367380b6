"""Allowed network addresses of sources, and connections to no other address."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore

# Special-purpose blocks of the IANA registries for IPv4 and IPv6 that older versions of `ipaddress` call global,
# and the one public address of a cloud's host service (Azure's WireServer).
_FORBIDDEN = tuple(
    ipaddress.ip_network(block)
    for block in (
        "168.63.129.16/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "64:ff9b:1::/48",
        "3fff::/20",
        "5f00::/16",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Last labels of names that exist in private networks only: reserved ones (RFC 6761, 6762, 8375, and `internal`), those
# of cluster services, and those that private networks use without a reservation.
_PRIVATE_LABELS = frozenset(
    {
        "localhost",
        "localdomain",
        "local",
        "internal",
        "intranet",
        "arpa",
        "svc",
        "lan",
        "home",
        "corp",
        "private",
    }
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

ErrorFactory = Callable[[], Exception]


def is_public(address: str) -> bool:
    """Return whether an IP address is public. An IPv4 address embedded in an IPv6 address decides for it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    if any(ip.version == block.version and ip in block for block in _FORBIDDEN):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def allowed_addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Resolve `host` and return its allowed addresses; the list is empty if all are forbidden.

    The operating system resolves the name, so other spellings of an address (decimal, octal, hexadecimal) are checked
    by their meaning. Raises OSError or UnicodeError if the name does not resolve.
    """
    return [text for text in _resolve(host, port) if allow_private or is_public(text)]


def may_ask_proxy_for(host: str, port: int, *, allow_private: bool) -> bool:
    """Return whether a proxy may be asked for a connection to `host`, which it resolves again itself.

    So every address that the name has here must be allowed, not just one of them. A name that has none here passes if
    it can be a name of the public Internet: behind a proxy, many networks resolve no such names.
    """
    if allow_private:
        return True
    # With a trailing dot, an address does not resolve here, but may do so at the proxy.
    name = host.rstrip(".")
    try:
        addresses = _resolve(name, port)
    except (OSError, UnicodeError):
        return _is_public_name(name)
    return all(map(is_public, addresses))


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_public_name(name: str) -> bool:
    """Return whether a name has several labels and ends neither like an address nor with a private network's label."""
    labels = name.lower().split(".")
    return (
        len(labels) > 1
        and all(labels)
        and labels[-1] not in _PRIVATE_LABELS
        and not _NUMBER.fullmatch(labels[-1])
    )


class GuardedNetwork(httpcore.NetworkBackend):
    """Connects to the same address that it checked, so that a second DNS lookup cannot lead elsewhere.

    `forbidden` makes the error for a host without an allowed address, `late` the error for work after `deadline` (of
    time.monotonic). The deadline bounds every read and write, so a server cannot hold the connection by sending a
    byte now and then.
    """

    def __init__(
        self, *, allow_private: bool, deadline: float, forbidden: ErrorFactory, late: ErrorFactory
    ) -> None:
        self._allow_private = allow_private
        self._clock = _Clock(deadline, late)
        self._forbidden = forbidden
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve `host`, drop forbidden addresses and connect to the first address that accepts."""
        try:
            allowed = allowed_addresses(host, port, allow_private=self._allow_private)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the server's name cannot be resolved") from error
        if not allowed:
            raise self._forbidden()
        for number, address in enumerate(allowed, start=1):
            try:
                stream = self._network.connect_tcp(
                    address, port, self._clock.bounded(timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(allowed):
                    raise
            else:
                return _BoundedStream(stream, self._clock)
        raise httpcore.ConnectError("no address accepted the connection")

    def sleep(self, seconds: float) -> None:
        """Wait between the connection attempts of httpcore."""
        self._network.sleep(seconds)


class _Clock:
    """The time left until the deadline."""

    def __init__(self, deadline: float, late: ErrorFactory) -> None:
        self._deadline = deadline
        self._late = late

    def bounded(self, timeout: float | None) -> float:
        """Return `timeout` or, if that is shorter, the time left. Raises the `late` error at the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        return left if timeout is None else min(timeout, left)


class _BoundedStream(httpcore.NetworkStream):
    """A connection that ends every operation by the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read at most `max_bytes`."""
        return self._stream.read(max_bytes, self._clock.bounded(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of `buffer`."""
        self._stream.write(buffer, self._clock.bounded(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Begin TLS over this connection."""
        secured = self._stream.start_tls(ssl_context, server_hostname, self._clock.bounded(timeout))
        return _BoundedStream(secured, self._clock)

    def get_extra_info(self, info: str) -> Any:
        """Return a property of the wrapped connection."""
        return self._stream.get_extra_info(info)
