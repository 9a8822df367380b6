"""The proxy for libraries that open their own connections."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trustme
from finetune_trainer.sources import egress
from finetune_trainer.sources.egress import public_egress
from finetune_trainer.sources.network import Network

from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import BODY, Script, http_server, status

AUTHORITY = trustme.CA()


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


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


def network(**variables: str) -> Network:
    found = Network.from_environment(variables)
    return replace(found, bundle=AUTHORITY.cert_pem.bytes().decode())


def tunnel(egress_: egress.Egress, host: str, port: int, request: bytes = b"GET / HTTP/1.0\r\n\r\n") -> bytes:
    """Return what a server for `host` answers over TLS in a tunnel, or the proxy's status line if there is no tunnel."""
    client_side = egress_.network.tls_context()
    with socket.create_connection(egress_.address) as client:
        client.sendall(b"CONNECT %b:%d HTTP/1.1\r\n\r\n" % (host.encode(), port))
        answer = client.recv(100)
        if not answer.startswith(b"HTTP/1.1 200"):
            return answer
        with client_side.wrap_socket(client, server_hostname=host) as secured:
            secured.sendall(request)
            answer = b""
            while received := secured.recv(1 << 16):
                answer += received
            return answer


@pytest.fixture
def server() -> Iterator[int]:
    """Run a server for files.example over TLS, and yield its port."""
    with http_server(Script([status(200, BODY)]), context=server_context("files.example")) as origin:
        yield int(origin.rpartition(":")[2])


@pytest.mark.parametrize("secure", [False, True])
def test_a_tunnel_leads_through_the_forward_proxy(server: int, *, secure: bool) -> None:
    """Also through a proxy with TLS of its own, so that TLS runs within TLS."""
    proxy = ForwardProxy({"files.example": server}, authorization="Basic dTpw")
    with proxying(proxy, server_context("localhost") if secure else None) as url:
        settings = network(HTTPS_PROXY=url.replace("://", "://u:p@"))
        with public_egress(settings) as running:
            assert tunnel(running, "files.example", 443).endswith(BODY)
            assert not running.blocked
    assert proxy.lines == ["CONNECT files.example:443 HTTP/1.1"]


@pytest.mark.parametrize(
    "host", ["localhost", "10.1.2.3", "metadata", "db.team.svc.cluster.local", "127.0.0.1."]
)
def test_the_forward_proxy_is_asked_for_no_private_server(host: str) -> None:
    proxy = ForwardProxy()
    with proxying(proxy) as url, public_egress(network(HTTPS_PROXY=url)) as running:
        assert tunnel(running, host, 443).startswith(b"HTTP/1.1 403")
        assert running.blocked
    assert proxy.lines == []


def test_an_excepted_server_is_reached_directly_and_its_address_is_checked() -> None:
    proxy = ForwardProxy()
    with proxying(proxy) as url, public_egress(network(HTTPS_PROXY=url, NO_PROXY="127.0.0.0/8")) as running:
        assert tunnel(running, "127.0.0.1", 443).startswith(b"HTTP/1.1 403")
    assert proxy.lines == []


def test_a_status_of_the_forward_proxy_is_kept() -> None:
    with (
        proxying(ForwardProxy(authorization="Basic x")) as url,
        public_egress(network(HTTPS_PROXY=url)) as running,
    ):
        assert tunnel(running, "files.example", 443).startswith(b"HTTP/1.1 502")
        assert running.proxy_status == "407"
        assert not running.blocked


def test_a_private_proxy_of_the_job_is_not_used() -> None:
    proxy = ForwardProxy()
    with (
        proxying(proxy) as url,
        public_egress(network(HTTPS_PROXY=url, FINETUNE_JOB_PROXIES="HTTPS_PROXY")) as running,
    ):
        assert tunnel(running, "files.example", 443).startswith(b"HTTP/1.1 403")
        assert running.proxy_blocked
    assert proxy.lines == []


def plain(running: egress.Egress, url: str) -> bytes:
    """Return the answer to a plain request in absolute form."""
    with socket.create_connection(running.address) as client:
        client.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\nProxy-Connection: keep-alive\r\n\r\n".encode())
        answer = b""
        while received := client.recv(1 << 16):
            answer += received
        return answer


def test_plain_requests_are_forwarded_if_private_addresses_are_allowed() -> None:
    script, proxy = Script([status(200, BODY)]), ForwardProxy()
    with http_server(script, host="127.0.0.1") as origin:
        with public_egress(allow_private=True) as running:
            assert plain(running, f"{origin}/a?b").endswith(BODY)
        with proxying(proxy) as url, public_egress(network(HTTP_PROXY=url), allow_private=True) as running:
            assert plain(running, origin).endswith(BODY)
        with public_egress() as running:
            assert plain(running, f"{origin}/a").startswith(b"HTTP/1.1 403")
            assert running.blocked
    assert script.lines == ["GET /a?b HTTP/1.1", "GET / HTTP/1.1"]
    assert script.seen[0]["connection"] == "close"
    assert "proxy-connection" not in script.seen[0]
    assert proxy.lines == [f"GET {origin} HTTP/1.1"]
