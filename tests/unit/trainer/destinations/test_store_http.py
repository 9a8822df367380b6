"""Addresses and credentials of a bucket for requests that obstore cannot make, and the meaning of their responses."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from finetune_trainer.contract.destinations import ObjectStoreDestination
from finetune_trainer.destinations.store_http import StoreAccess
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import Outage, RetryPolicy

from tests.support.servers.loopback import http_server, status

TARGET = destination_target("cloud")
KEYS = {"T_AWS_ACCESS_KEY_ID": "AKIA", "T_AWS_SECRET_ACCESS_KEY": "secret"}


def access(uri: str, environment: dict[str, str], **more: Any) -> StoreAccess | None:
    fields = {"kind": "ObjectStore", "name": "cloud", "uri": uri, "credentials_prefix": "T_", **more}
    return StoreAccess.of(ObjectStoreDestination(**fields), TARGET, environment)


@pytest.mark.parametrize(
    ("uri", "environment", "more", "address"),
    [
        ("s3://b/k", KEYS, {}, ("s3.us-east-1.amazonaws.com", "/b")),
        ("s3://b/k", KEYS, {"region": "eu-west-1"}, ("s3.eu-west-1.amazonaws.com", "/b")),
        ("s3://b/k", {**KEYS, "T_AWS_REGION": "eu-north-1"}, {}, ("s3.eu-north-1.amazonaws.com", "/b")),
        ("s3://b/k", KEYS, {"endpoint": "https://minio.example.com/x/"}, ("minio.example.com", "/x/b")),
        (
            "gs://b/k",
            {"T_GOOGLE_SERVICE_ACCOUNT_KEY": '{"disable_oauth": true}'},
            {},
            ("storage.googleapis.com", "/b"),
        ),
        ("az://acc/c/k", {"T_AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}, {}, ("acc.blob.core.windows.net", "/c")),
    ],
)
def test_the_address_is_that_of_the_cloud_or_of_the_given_server(
    uri: str, environment: dict[str, str], more: dict[str, str], address: tuple[str, str]
) -> None:
    found = access(uri, environment, **more)
    assert found is not None
    assert (found.root.host, found.path) == address


@pytest.mark.parametrize("token", ["?sv=2023&sig=a%2Bb%3D", "sv=2023&sig=a+b="])
def test_a_shared_access_signature_is_part_of_every_request(token: str) -> None:
    found = access("az://acc/c/k", {"T_AZURE_STORAGE_SAS_TOKEN": token})
    assert found is not None
    assert found.query == {"sv": "2023", "sig": "a+b="}
    assert "a+b" not in repr(found)


@pytest.mark.parametrize(
    ("uri", "environment", "more"),
    [
        ("s3://b/k", {}, {"credentials_prefix": None}),
        ("gs://b/k", {"T_GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}, {}),
        ("gs://b/k", {"T_GOOGLE_SERVICE_ACCOUNT_KEY": "3"}, {}),
        (
            "gs://b/k",
            {"T_GOOGLE_SERVICE_ACCOUNT_KEY": '{"disable_oauth": true, "gcs_base_url": "http://a"}'},
            {},
        ),
        (
            "az://acc/c/k",
            {"T_AZURE_CLIENT_ID": "a", "T_AZURE_CLIENT_SECRET": "b", "T_AZURE_TENANT_ID": "c"},
            {},
        ),
    ],
)
def test_credentials_that_only_obstore_can_use_are_left_to_it(
    uri: str, environment: dict[str, str], more: dict[str, None]
) -> None:
    assert access(uri, environment, **more) is None


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [
        (403, b"<Error><Code>AccessDenied</Code></Error>", Reason.DESTINATION_ACCESS_DENIED),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", Reason.DESTINATION_NOT_FOUND),
        (400, b"<Error><Code>ExpiredToken</Code></Error>", Reason.DESTINATION_ACCESS_DENIED),
        (301, b"", Reason.DESTINATION_UNAVAILABLE),
        (400, b"<Error><Code>InvalidPart</Code></Error>", Reason.DESTINATION_UNAVAILABLE),
        (501, b"<Error><Code>NotImplemented</Code></Error>", Reason.DESTINATION_UNAVAILABLE),
    ],
)
def test_a_rejection_has_its_reason(code: int, body: bytes, reason: Reason) -> None:
    with pytest.raises(StageError) as caught:
        _call(code, body)
    assert caught.value.reason is reason
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("code", "body"), [(503, b""), (200, b"<Error><Code>InternalError</Code></Error>")])
def test_trouble_that_may_pass_is_an_outage_even_with_the_status_of_success(code: int, body: bytes) -> None:
    with pytest.raises(Outage):
        _call(code, body)


@pytest.mark.parametrize("code", [200, 201, 204])
def test_success_is_returned(code: int) -> None:
    assert _call(code, b"").status == code


def _call(code: int, body: bytes) -> Any:
    seen: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.path)
        status(code, body)(handler)

    with http_server(answer) as origin:
        found = access("s3://b/k", KEYS, endpoint=origin)
        assert found is not None
        with found.opened(TARGET, Network(retry=RetryPolicy(0)), allow_private=True) as client:
            try:
                return client.call("GET", "k/a b+c", {"uploads": "", "prefix": "x/y"})
            finally:
                assert seen == ["/b/k/a%20b%2Bc?prefix=x%2Fy&uploads="]
