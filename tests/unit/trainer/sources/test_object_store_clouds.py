"""Google Cloud Storage, Azure and stores behind a proxy: downloads, and the reasons for their rejections."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.dataset import Fetched, fetch_dataset
from finetune_trainer.sources.object_store import ObjectStoreModel
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.servers import azure
from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import Script, gcs_server, http_server, status

ROWS = b'{"messages": []}\n' * 10_000
AZURE_KEY = {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": azure.KEY}
S3_KEYS = {"TEAM_AWS_ACCESS_KEY_ID": "AKIATEST", "TEAM_AWS_SECRET_ACCESS_KEY": "secret"}


def service_account() -> str:
    """Return a service account's key in Google's format, with a private key of the test."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    members = {
        "type": "service_account",
        "client_email": "x@y.iam.gserviceaccount.com",
        "private_key_id": "1",
    }
    return json.dumps({**members, "private_key": key.decode()})


def source(uri: str, endpoint: str | None) -> ObjectStoreSource:
    return ObjectStoreSource(kind="ObjectStore", uri=uri, endpoint=endpoint, credentials_prefix="TEAM_")


def fetch(
    wanted: ObjectStoreSource, folder: Path, environment: dict[str, str], *, allow: bool = True
) -> Fetched:
    limits = RunLimits(
        dataset_bytes=10**7, download_seconds=60, allow_private_addresses=allow, retry_seconds=60
    )
    return fetch_dataset(wanted, "dataset", limits, folder, lambda _done, _total: None, environment)


def rejection(
    wanted: ObjectStoreSource, folder: Path, environment: dict[str, str], **options: Any
) -> StageError:
    with pytest.raises(StageError) as caught:
        fetch(wanted, folder, environment, **options)
    for secret in environment.values():
        assert secret not in caught.value.message
    return caught.value


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause lasts no time and counts as half of the time for an outage, so that there are three attempts."""
    monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.0)
    monkeypatch.setattr("finetune_trainer.sources.retry._SHORTEST_COUNTED_SECONDS", 30)


@pytest.mark.object_stores
def test_cloud_storage_gives_datasets_and_models(tmp_path: Path, tiny_model: Path) -> None:
    objects = {f"models/tiny/{path.name}": path.read_bytes() for path in tiny_model.iterdir()}
    environment = {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": service_account()}
    with gcs_server({**objects, "sets/rows.jsonl": ROWS}, "bucket") as endpoint:
        fetched = fetch(source("gs://bucket/sets/rows.jsonl", endpoint), tmp_path, environment)
        assert fetched.paths[0].read_bytes() == ROWS
        assert fetched.identity["version"]
        missing = rejection(source("gs://bucket/none", endpoint), tmp_path / "none", environment)
        model = ObjectStoreModel(
            source("gs://bucket/models/tiny", endpoint),
            tmp_path / "model",
            allow_private_addresses=True,
            environment=environment,
        )
        path = model.fetch("model.safetensors", lambda _done, _total: None)
    assert path.read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert missing.reason is Reason.DATASET_NOT_FOUND


@pytest.mark.parametrize("key", ["no JSON", "{}", '{"private_key": "x", "client_email": "y"}'])
def test_a_malformed_service_account_is_denied(tmp_path: Path, key: str) -> None:
    error = rejection(source("gs://bucket/x", None), tmp_path, {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": key})
    assert error.reason is Reason.DATASET_ACCESS_DENIED


@contextmanager
def azure_account(tiny_model: Path) -> Iterator[tuple[azure.AzureBlobs, str]]:
    blobs = {f"tiny/{path.name}": path.read_bytes() for path in tiny_model.iterdir()}
    account = azure.AzureBlobs({"data": {"sets/rows.jsonl": ROWS}, "models": blobs})
    with azure.azure_server(account) as endpoint:
        yield account, endpoint


def test_azure_gives_datasets_and_models(tmp_path: Path, tiny_model: Path) -> None:
    with azure_account(tiny_model) as (_, endpoint):
        uri = f"az://{azure.ACCOUNT}/data/sets/rows.jsonl"
        assert fetch(source(uri, endpoint), tmp_path, AZURE_KEY).paths[0].read_bytes() == ROWS
        model = ObjectStoreModel(
            source(f"az://{azure.ACCOUNT}/models/tiny", endpoint),
            tmp_path / "model",
            allow_private_addresses=True,
            environment=AZURE_KEY,
        )
        path = model.fetch("model.safetensors", lambda _done, _total: None)
    assert path.read_bytes() == (tiny_model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("place", "environment", "reason"),
    [
        ("data/none", AZURE_KEY, Reason.DATASET_NOT_FOUND),
        ("none/rows.jsonl", AZURE_KEY, Reason.DATASET_NOT_FOUND),
        (
            "data/sets/rows.jsonl",
            {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(b"wrong").decode()},
            Reason.DATASET_ACCESS_DENIED,
        ),
        (
            "data/sets/rows.jsonl",
            {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": "no base64!"},
            Reason.DATASET_ACCESS_DENIED,
        ),
        (
            "data/sets/rows.jsonl",
            {"TEAM_AZURE_STORAGE_SAS_TOKEN": "?sv=2022-11-02&sp=r&se=2021-01-01T00:00:00Z&sig=c2lnbmF0dXJl"},
            Reason.DATASET_ACCESS_DENIED,
        ),
        ("data/sets/rows.jsonl", {}, Reason.DATASET_ACCESS_DENIED),
    ],
)
def test_rejections_by_azure_have_their_reasons(
    tmp_path: Path, tiny_model: Path, place: str, environment: dict[str, str], reason: Reason
) -> None:
    with azure_account(tiny_model) as (_, endpoint):
        error = rejection(source(f"az://{azure.ACCOUNT}/{place}", endpoint), tmp_path, environment)
    assert error.reason is reason
    assert ("expired" in error.message) is ("TEAM_AZURE_STORAGE_SAS_TOKEN" in environment)


def test_a_shared_access_signature_works_while_it_is_valid(tmp_path: Path, tiny_model: Path) -> None:
    token = "sv=2022-11-02&sp=r&se=2099-01-01T00%3A00%3A00Z&sig=c2lnbmF0dXJl%2B"
    with azure_account(tiny_model) as (_, endpoint):
        wanted = source(f"az://{azure.ACCOUNT}/data/sets/rows.jsonl", endpoint)
        fetched = fetch(wanted, tmp_path, {"TEAM_AZURE_STORAGE_SAS_TOKEN": token})
    assert fetched.paths[0].read_bytes() == ROWS


def xml(code: str, message: str = "") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (
            status(400, xml("ExpiredToken", "The provided token has expired.")),
            Reason.DATASET_ACCESS_DENIED,
            1,
        ),
        (
            status(400, xml("InvalidToken", "The provided token is malformed.")),
            Reason.DATASET_ACCESS_DENIED,
            1,
        ),
        (status(400, xml("AuthorizationHeaderMalformed", "the region")), Reason.DATASET_ACCESS_DENIED, 1),
        (status(403, xml("InvalidAccessKeyId")), Reason.DATASET_ACCESS_DENIED, 1),
        (status(404, xml("NoSuchBucket")), Reason.DATASET_NOT_FOUND, 1),
        (status(301, xml("PermanentRedirect")), Reason.DATASET_UNAVAILABLE, 1),
        (status(503, xml("SlowDown")), Reason.DATASET_UNAVAILABLE, 3),
        (status(500, b"garbage"), Reason.DATASET_UNAVAILABLE, 3),
        (status(400, xml("RequestTimeout")), Reason.DATASET_UNAVAILABLE, 3),
        (status(200, b"no length, no ETag, no date"), None, 1),
    ],
)
def test_responses_of_a_store_have_their_reasons(
    tmp_path: Path, answer: Callable[[Any], None], reason: Reason | None, requests: int
) -> None:
    script = Script([answer])
    with http_server(script) as origin:
        wanted = source("s3://bucket/rows.jsonl", origin)
        if reason is None:
            assert fetch(wanted, tmp_path, S3_KEYS).paths[0].read_bytes() == b"no length, no ETag, no date"
        else:
            assert rejection(wanted, tmp_path, S3_KEYS).reason is reason
    assert len(script.seen) == requests


def test_a_name_that_turns_private_after_the_check_is_not_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding between the check of the endpoint and the library's own connection."""
    answers = iter(["93.184.216.34"])
    real = socket.getaddrinfo

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        if host != "rebinding.example":
            return real(host, port, **options)
        address = next(answers, "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    script = Script([status(200, ROWS)])
    with http_server(script) as origin:
        place = f"https://rebinding.example:{origin.rsplit(':', 1)[1]}"
        error = rejection(source("s3://bucket/rows.jsonl", place), tmp_path, S3_KEYS, allow=False)
    assert error.reason is Reason.DATASET_ADDRESS_FORBIDDEN
    assert script.seen == []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Script, ForwardProxy, dict[str, str]]]:
    """Run a store with TLS that only a proxy reaches. Yields its script, the proxy and the environment."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("store.example").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    found = status(200, ROWS, ETag='"v1"', Last_Modified="Mon, 02 Nov 2026 10:00:00 GMT")
    script = Script([found])
    with http_server(script, context=context) as origin:
        proxy = ForwardProxy({"store.example": int(origin.rpartition(":")[2])})
        with proxying(proxy) as url:
            yield (
                script,
                proxy,
                {**S3_KEYS, "HTTPS_PROXY": url, "FINETUNE_CA_BUNDLE": str(tmp_path / "ca.pem")},
            )


@pytest.mark.parametrize("allow", [False, True])
def test_a_store_is_reached_through_a_proxy_with_an_authority_of_its_own(
    tmp_path: Path, store: tuple[Script, ForwardProxy, dict[str, str]], *, allow: bool
) -> None:
    _script, proxy, environment = store
    wanted = source("s3://bucket/rows", "https://store.example")
    assert fetch(wanted, tmp_path, environment, allow=allow).paths[0].read_bytes() == ROWS
    assert set(proxy.lines) == {"CONNECT store.example:443 HTTP/1.1"}


def test_a_store_of_an_unknown_authority_is_named_at_once(
    tmp_path: Path, store: tuple[Script, ForwardProxy, dict[str, str]]
) -> None:
    script, proxy, environment = store
    environment.pop("FINETUNE_CA_BUNDLE")
    error = rejection(source("s3://bucket/rows", "https://store.example"), tmp_path, environment)
    assert error.reason is Reason.DATASET_UNAVAILABLE
    assert "caBundle" in error.message
    assert len(proxy.lines) == 1
    assert script.seen == []


def test_a_proxy_that_wants_a_password_is_named(
    tmp_path: Path, store: tuple[Script, ForwardProxy, dict[str, str]]
) -> None:
    _script, proxy, environment = store
    proxy.authorization = "Basic dTpw"
    wanted = source("s3://bucket/rows", "https://store.example")
    error = rejection(wanted, tmp_path, environment)
    assert error.reason is Reason.DATASET_ACCESS_DENIED
    assert "proxySecretRef" in error.message
    environment["HTTPS_PROXY"] = environment["HTTPS_PROXY"].replace("://", "://u:p@")
    assert fetch(wanted, tmp_path, environment).paths[0].read_bytes() == ROWS


def test_a_proxy_that_is_still_starting_is_waited_for(
    tmp_path: Path, store: tuple[Script, ForwardProxy, dict[str, str]]
) -> None:
    _script, proxy, environment = store
    proxy.faults += [503, 502]
    wanted = source("s3://bucket/rows", "https://store.example")
    assert fetch(wanted, tmp_path, environment).paths[0].read_bytes() == ROWS


def test_a_plain_store_is_reached_through_a_proxy_if_private_addresses_are_allowed(tmp_path: Path) -> None:
    found = status(200, ROWS, ETag='"v1"', Last_Modified="Mon, 02 Nov 2026 10:00:00 GMT")
    proxy = ForwardProxy()
    with http_server(Script([found]), host="127.0.0.1") as origin, proxying(proxy) as url:
        environment = {**S3_KEYS, "HTTP_PROXY": url}
        fetched = fetch(source("s3://bucket/rows", origin), tmp_path, environment)
    assert fetched.paths[0].read_bytes() == ROWS
    assert proxy.lines[0].startswith(f"GET {origin}/bucket/rows")


def test_an_etag_that_only_the_listing_names_does_not_matter(tmp_path: Path, tiny_model: Path) -> None:
    """Some gateways leave it out of the object's own response."""
    contents = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    entries = "".join(
        f"<Contents><Key>m/{name}</Key><LastModified>2026-11-02T10:00:00.000Z</LastModified>"
        f'<ETag>"{name}"</ETag><Size>{len(content)}</Size></Contents>'
        for name, content in contents.items()
    )
    listing = f"<ListBucketResult><Name>b</Name><Prefix>m/</Prefix>{entries}</ListBucketResult>".encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.partition("?")[0].rpartition("/")[2]
        body = contents.get(name, listing)
        status(200, body, Last_Modified="Mon, 02 Nov 2026 10:00:00 GMT")(handler)

    with http_server(answer, host="127.0.0.1") as origin:
        model = ObjectStoreModel(
            source("s3://b/m", origin), tmp_path, allow_private_addresses=True, environment=S3_KEYS
        )
        path = model.fetch("model.safetensors", lambda _done, _total: None)
    assert path.read_bytes() == contents["model.safetensors"]
