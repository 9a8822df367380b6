"""The proxy for libraries that open their own connections."""

from __future__ import annotations

import socket
import threading

import pytest
from finetune_trainer.sources import egress
from finetune_trainer.sources.egress import public_egress


@pytest.mark.parametrize(
    "request_head",
    [
        b"CONNECT localhost:443 HTTP/1.1\r\n\r\n",
        b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"GET http://169.254.169.254/latest HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_the_proxy_reaches_no_private_address(request_head: bytes) -> None:
    with public_egress() as proxy, socket.create_connection(proxy.address) as client:
        client.sendall(request_head)
        assert client.recv(100).startswith(b"HTTP/1.1 403")
        assert proxy.blocked


def test_the_proxy_forwards_bytes_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loopback server replaces a public one."""
    monkeypatch.setattr(egress, "allowed_addresses", lambda *_place, **_rules: ["127.0.0.1"])
    listener = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data[::-1])

    threading.Thread(target=echo, daemon=True).start()
    with listener, public_egress() as proxy, socket.create_connection(proxy.address) as client:
        client.sendall(b"CONNECT public.example:%d HTTP/1.1\r\n\r\n" % listener.getsockname()[1])
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.sendall(b"abc")
        assert client.recv(100) == b"cba"
        assert not proxy.blocked


def answer_to(request_head: bytes) -> tuple[bytes, bool]:
    """Return the proxy's response to a request, and True if the proxy has denied a request."""
    with public_egress() as proxy, socket.create_connection(proxy.address) as client:
        client.sendall(request_head)
        return client.recv(100), proxy.blocked


def test_a_name_that_does_not_resolve_is_a_bad_gateway_and_not_denied() -> None:
    answer, blocked = answer_to(b"CONNECT " + b"a" * 64 + b".example:443 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502")
    assert not blocked


def test_a_server_that_does_not_listen_is_a_bad_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "allowed_addresses", lambda *_place, **_rules: ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answer, blocked = answer_to(b"CONNECT public.example:%d HTTP/1.1\r\n\r\n" % port)
    assert answer.startswith(b"HTTP/1.1 502")
    assert not blocked


def test_a_head_without_an_end_is_denied_at_its_limit() -> None:
    answer, blocked = answer_to(b"x" * 8192)
    assert answer.startswith(b"HTTP/1.1 403")
    assert blocked


def test_a_client_that_leaves_at_once_does_not_disturb_the_next() -> None:
    with public_egress() as proxy:
        socket.create_connection(proxy.address).close()
        with socket.create_connection(proxy.address) as client:
            client.sendall(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 403")
