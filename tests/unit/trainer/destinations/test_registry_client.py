"""Sign-in, references and outages of a registry."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from finetune_trainer.contract.destinations import RegistryDestination
from finetune_trainer.destinations.registry_client import RegistryClient
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.servers.loopback import http_server, status
from tests.support.servers.registry import PASSWORD, USER, registry_server

SIGNED_IN = {"TEAM_username": USER, "TEAM_password": PASSWORD}


def client(
    reference: str, environment: dict[str, str] | None = None, *, allow_private: bool = True
) -> RegistryClient:
    destination = RegistryDestination(
        kind="Oci",
        name="registry",
        reference=reference,
        credentials_prefix=None if environment is None else "TEAM_",
    )
    network = Network(retry=RetryPolicy(0))
    target = destination_target("registry")
    return RegistryClient(destination, target, environment or {}, network, allow_private=allow_private)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry_server(tmp_path_factory.mktemp("registry"), sign_in=True) as host:
        yield host


@pytest.mark.object_stores
def test_user_and_password_open_the_registry(host: str) -> None:
    digest = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    with client(f"{host}/a/b:1", SIGNED_IN) as registry:
        assert registry.manifest("1") is None
        assert not registry.has_blob(digest)
        registry.put_blob(digest, 5, lambda: iter([b"he", b"llo"]))
        assert registry.has_blob(digest)
        assert registry.blob(digest) == b"hello"


@pytest.mark.object_stores
def test_other_bytes_than_the_digest_says_are_not_taken(host: str) -> None:
    with client(f"{host}/a/b:1", SIGNED_IN) as registry, pytest.raises(StageError) as caught:
        registry.put_blob("sha256:" + "0" * 64, 5, lambda: iter([b"hello"]))
    assert caught.value.reason is Reason.DESTINATION_UNAVAILABLE


@pytest.mark.object_stores
@pytest.mark.parametrize("environment", [None, {**SIGNED_IN, "TEAM_password": "wrong-password"}])
def test_a_wrong_or_missing_sign_in_has_its_reason(host: str, environment: dict[str, str] | None) -> None:
    with client(f"{host}/a/b:1", environment) as registry, pytest.raises(StageError) as caught:
        registry.try_upload()
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
    assert "wrong-password" not in caught.value.message


@pytest.mark.parametrize(
    "environment", [{}, {"TEAM_username": "a"}, {"TEAM_password": "b", "TEAM_username": " "}]
)
def test_a_secret_without_both_keys_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(StageError, match="username and password") as caught:
        client("127.0.0.1:1/a:1", environment)
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED


@pytest.mark.parametrize(
    "reference", ["host", "host/name", "host/Name:1", "https://host/name:1", "host/name:-", "host/na me:1"]
)
def test_a_malformed_reference_is_rejected(reference: str) -> None:
    with pytest.raises(StageError) as caught:
        client(reference)
    assert caught.value.reason is Reason.DESTINATION_NOT_FOUND


def test_a_registry_that_is_away_is_unavailable() -> None:
    with client("127.0.0.1:1/a:1") as registry, pytest.raises(StageError) as caught:
        registry.manifest("1")
    assert caught.value.reason is Reason.DESTINATION_UNAVAILABLE


def test_a_private_address_needs_the_administrators_leave() -> None:
    with client("127.0.0.1:1/a:1", allow_private=False) as registry, pytest.raises(StageError) as caught:
        registry.manifest("1")
    assert caught.value.reason is Reason.DESTINATION_ADDRESS_FORBIDDEN


@pytest.mark.parametrize("password", [PASSWORD, "wrong-password"])
def test_a_registry_may_send_its_clients_to_a_token_server(password: str) -> None:
    """Like those of the clouds: user and password go to the token server alone, and the registry gets the token."""
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    seen: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        given = handler.headers.get("Authorization", "")
        if handler.path.startswith("/token?"):
            seen.append(handler.path)
            status(200, b'{"token": "t1"}')(handler) if given == expected else status(401)(handler)
        elif given == "Bearer t1":
            status(404)(handler)
        else:
            origin = f"http://{handler.headers['Host']}"
            challenge = f'Bearer realm="{origin}/token",service="registry.test",scope="repository:a/b:pull"'
            status(401, WWW_Authenticate=challenge)(handler)

    environment = {"TEAM_username": USER, "TEAM_password": password}
    with (
        http_server(answer) as origin,
        client(f"{origin.removeprefix('http://')}/a/b:1", environment) as registry,
    ):
        if password == PASSWORD:
            assert registry.manifest("1") is None
            assert registry.manifest("2") is None
            assert seen == ["/token?service=registry.test&scope=repository%3Aa%2Fb%3Apull%2Cpush"]
        else:
            with pytest.raises(StageError) as caught:
                registry.manifest("1")
            assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED


def test_a_token_that_expires_in_an_upload_is_renewed_once() -> None:
    """The body of an upload cannot be sent again, so the whole upload begins again."""
    tokens, puts = iter(range(100)), []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        given = handler.headers.get("Authorization", "")
        if handler.path.startswith("/token?"):
            status(200, f'{{"token": "t{next(tokens)}"}}'.encode())(handler)
        elif not given.startswith("Bearer"):
            challenge = f'Bearer realm="http://{handler.headers["Host"]}/token"'
            status(401, WWW_Authenticate=challenge)(handler)
        elif handler.command == "POST":
            status(202, Location="/v2/a/b/blobs/uploads/1")(handler)
        else:
            handler.rfile.read(int(handler.headers["Content-Length"]))
            puts.append(given)
            status(401 if given == "Bearer t0" else 201)(handler)

    with http_server(answer) as origin:
        destination = RegistryDestination(
            kind="Oci",
            name="registry",
            reference=f"{origin.removeprefix('http://')}/a/b:1",
            credentials_prefix="TEAM_",
        )
        network = Network(retry=RetryPolicy(60, sleep=lambda _: None))
        target = destination_target("registry")
        with RegistryClient(destination, target, SIGNED_IN, network, allow_private=True) as registry:
            registry.put_blob("sha256:" + "0" * 64, 5, lambda: iter([b"hello"]))
    assert puts == ["Bearer t0", "Bearer t1"]
