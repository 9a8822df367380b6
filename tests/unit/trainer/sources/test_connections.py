"""Connections through real forward proxies on loopback, over real TLS."""

from __future__ import annotations

import base64
import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.connections import Connections, proxy_rejection
from finetune_trainer.sources.fetch_target import DATASET
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.url import Location

from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import BODY, Script, http_server, ranged, status
from tests.support.servers.wire import send

AUTHORITY = trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


class ForbiddenError(Exception):
    """The error for a forbidden address."""


@contextmanager
def connected(
    folder: Path, environment: dict[str, str], *, allow_private: bool = False
) -> Iterator[Connections]:
    """Yield connections with the test's authority and these variables."""
    AUTHORITY.cert_pem.write_to_path(str(folder / "ca.pem"))
    network = Network.from_environment(
        {"FINETUNE_CA_BUNDLE": str(folder / "ca.pem"), **environment}, allow_private=allow_private
    )
    with Connections(
        network,
        DATASET,
        allow_private=allow_private,
        deadline=math.inf,
        forbidden=ForbiddenError,
        late=TimeoutError,
    ) as connections:
        yield connections


def fetch(connections: Connections, url: str) -> bytes:
    location = Location.parse(url)
    with connections.get(location, [(b"Host", location.authority.encode())]) as response:
        assert response.status == 200
        return b"".join(response.iter_stream())


def port_of(origin: str) -> int:
    return int(origin.rpartition(":")[2])


@pytest.fixture
def server() -> Iterator[int]:
    """Run a server for files.example and localhost over TLS, and yield its port."""
    with http_server(
        Script([status(200, BODY)]), context=server_context("files.example", "localhost")
    ) as origin:
        yield port_of(origin)


def test_a_https_server_is_reached_through_a_tunnel(tmp_path: Path, server: int) -> None:
    """The name exists at the proxy only, and the proxy has a private address."""
    proxy = ForwardProxy({"files.example": server})
    with (
        proxying(proxy) as url,
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
    ):
        assert fetch(connections, "https://files.example/data") == BODY
    assert proxy.lines == ["CONNECT files.example:443 HTTP/1.1"]


def test_a_http_server_is_reached_with_absolute_requests(tmp_path: Path) -> None:
    proxy, script = ForwardProxy(), Script([status(200, BODY)])
    with (
        http_server(script, host="127.0.0.1") as origin,
        proxying(proxy) as url,
        connected(tmp_path, {"HTTP_PROXY": url}, allow_private=True) as connections,
    ):
        assert fetch(connections, f"{origin}/data?x=1") == BODY
    assert proxy.lines == [f"GET {origin}/data?x=1 HTTP/1.1"]
    assert script.lines == ["GET /data?x=1 HTTP/1.1"]


def test_a_proxy_with_tls_and_a_password_works(tmp_path: Path, server: int) -> None:
    basic = f"Basic {base64.b64encode(b'user:s@cret').decode()}"
    proxy = ForwardProxy({"files.example": server}, authorization=basic)
    with proxying(proxy, server_context("localhost")) as url:
        place = url.replace("https://", "https://user:s%40cret@")
        with connected(tmp_path, {"HTTPS_PROXY": place}) as connections:
            assert fetch(connections, "https://files.example/data") == BODY
    assert proxy.fields[0]["proxy-authorization"] == basic


def test_an_excepted_server_is_reached_directly(tmp_path: Path, server: int) -> None:
    proxy = ForwardProxy()
    with proxying(proxy) as url:
        environment = {"HTTPS_PROXY": url, "NO_PROXY": f"localhost:{server}"}
        with connected(tmp_path, environment, allow_private=True) as connections:
            assert fetch(connections, f"https://localhost:{server}/data") == BODY
    assert proxy.lines == []


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
        "10.1.2.3",
        "metadata",
        "metadata.google.internal",
        "kubernetes.default.svc",
        "api.team.svc.cluster.local",
        "printer.local",
        "1.0.0.127.in-addr.arpa",
        "300.1.2.3",
    ],
)
def test_a_proxy_is_no_way_around_the_rules_about_addresses(tmp_path: Path, host: str) -> None:
    proxy = ForwardProxy()
    with (
        proxying(proxy) as url,
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
        pytest.raises(ForbiddenError),
    ):
        fetch(connections, f"https://{host}/data")
    assert proxy.lines == []


def test_a_name_with_one_private_address_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy resolves the name again and could take any of its addresses."""
    monkeypatch.setattr(
        "finetune_trainer.sources.addresses._resolve", lambda _host, _port: ["93.184.216.34", "10.0.0.7"]
    )
    proxy = ForwardProxy()
    with (
        proxying(proxy) as url,
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
        pytest.raises(ForbiddenError),
    ):
        fetch(connections, "https://mixed.example/data")
    assert proxy.lines == []


def test_a_proxy_that_the_job_names_must_have_an_allowed_address(tmp_path: Path) -> None:
    proxy = ForwardProxy()
    with proxying(proxy) as url:
        environment = {"HTTPS_PROXY": url, "FINETUNE_JOB_PROXIES": "HTTPS_PROXY"}
        with (
            connected(tmp_path, environment) as connections,
            pytest.raises(StageError, match="proxy") as caught,
        ):
            fetch(connections, "https://files.example/data")
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN
    assert proxy.lines == []


def test_a_private_proxy_of_the_job_is_fine_where_private_addresses_are(tmp_path: Path, server: int) -> None:
    proxy = ForwardProxy({"files.example": server})
    with proxying(proxy) as url:
        environment = {"HTTPS_PROXY": url, "FINETUNE_JOB_PROXIES": "HTTPS_PROXY"}
        with connected(tmp_path, environment, allow_private=True) as connections:
            assert fetch(connections, "https://files.example/data") == BODY


@pytest.mark.parametrize(
    ("code", "remedy"), [(407, "user and password"), (403, "administrator"), (401, "administrator")]
)
def test_a_proxy_that_rejects_the_request_is_named(tmp_path: Path, code: int, remedy: str) -> None:
    with (
        proxying(ForwardProxy(faults=[code])) as url,
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
        pytest.raises(StageError, match=remedy) as caught,
    ):
        fetch(connections, "https://files.example/data")
    assert caught.value.reason is Reason.DATASET_ACCESS_DENIED
    assert f"HTTP status {code}" in caught.value.message
    assert "files.example" not in caught.value.message


def test_a_proxy_that_wants_a_password_for_a_plain_request_is_named(tmp_path: Path) -> None:
    script = Script([status(200, BODY)])
    proxy = ForwardProxy(authorization="Basic dTpw")
    with http_server(script, host="127.0.0.1") as origin, proxying(proxy) as url:
        with (
            connected(tmp_path, {"HTTP_PROXY": url}, allow_private=True) as connections,
            pytest.raises(StageError, match="user and password"),
        ):
            fetch(connections, origin)
        place = url.replace("://", "://u:p@")
        with connected(tmp_path, {"HTTP_PROXY": place}, allow_private=True) as connections:
            assert fetch(connections, origin) == BODY
    assert "proxy-authorization" not in script.seen[0]


def test_a_proxy_that_starts_or_does_not_run_is_an_outage(tmp_path: Path) -> None:
    with (
        proxying(ForwardProxy(faults=[503])) as url,
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
        pytest.raises(Outage, match="HTTP status 503 from the proxy"),
    ):
        fetch(connections, "https://files.example/data")
    with (
        connected(tmp_path, {"HTTPS_PROXY": url}) as connections,
        pytest.raises(Outage, match="at the proxy"),
    ):
        fetch(connections, "https://files.example/data")


def test_a_status_that_is_none_is_an_outage() -> None:
    assert isinstance(proxy_rejection("", DATASET), Outage)


def test_a_certificate_of_an_unknown_authority_ends_at_once(tmp_path: Path, server: int) -> None:
    with (
        connected(tmp_path, {"FINETUNE_CA_BUNDLE": ""}, allow_private=True) as connections,
        pytest.raises(StageError, match="caBundle") as caught,
    ):
        fetch(connections, f"https://localhost:{server}/data")
    assert caught.value.reason is Reason.DATASET_UNAVAILABLE


def test_a_server_that_resets_the_connection_is_an_outage(tmp_path: Path) -> None:
    with (
        http_server(send(b"", reset=True), host="127.0.0.1") as origin,
        connected(tmp_path, {}, allow_private=True) as connections,
        pytest.raises(Outage),
    ):
        fetch(connections, f"{origin}/data")


def test_the_body_of_a_cut_connection_is_an_outage(tmp_path: Path) -> None:
    with (
        http_server(ranged('"v1"', cut_at=40_000), host="127.0.0.1") as origin,
        connected(tmp_path, {}, allow_private=True) as connections,
        pytest.raises(Outage),
    ):
        fetch(connections, f"{origin}/data")
