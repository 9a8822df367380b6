"""URIs and clients of object stores, and the meaning of the library's errors."""

from __future__ import annotations

import os

import obstore
import pytest
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.egress import public_egress
from finetune_trainer.sources.fetch_target import DATASET, MODEL
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.store_client import (
    LIBRARY_ERRORS,
    Changed,
    StoreUri,
    check_endpoint,
    interpret_error,
    open_store,
)
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError

from tests.support.servers.loopback import Script, http_server, status

KEYS = {"TEAM_AWS_ACCESS_KEY_ID": "AKIATEST", "TEAM_AWS_SECRET_ACCESS_KEY": "the-secret"}
URI = StoreUri("s3", "", "bucket", "rows.jsonl")


def source(
    endpoint: str | None, prefix: str | None = "TEAM_", region: str | None = None
) -> ObjectStoreSource:
    return ObjectStoreSource(
        kind="ObjectStore",
        uri="s3://bucket/rows.jsonl",
        endpoint=endpoint,
        region=region,
        credentials_prefix=prefix,
    )


def request_of(wanted: ObjectStoreSource, environment: dict[str, str], script: Script) -> dict[str, str]:
    """Return the headers of the request that a client sends for an object."""
    with http_server(script, host="127.0.0.1") as origin:
        store = open_store(
            wanted.model_copy(update={"endpoint": origin}), URI, DATASET, environment, None, 30
        )
        assert obstore.get(store, URI.key).bytes() == b"rows"
    return script.seen[0]


def found_object() -> Script:
    headers = {"ETag": '"v1"', "Last_Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}
    return Script([status(200, b"rows", **headers)])


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b", StoreUri("s3", "", "bucket", "a/b")),
        ("gs://bucket/prefix/", StoreUri("gs", "", "bucket", "prefix")),
        ("az://account/container/key", StoreUri("az", "account", "container", "key")),
    ],
)
def test_a_uri_has_its_parts(uri: str, expected: StoreUri) -> None:
    assert StoreUri.parse(uri, DATASET) == expected


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket", "s3://bucket/", "s3://bucket/a//b", "s3://bucket/../a", "az://account/key", "http://h/k"],
)
def test_any_other_uri_is_not_found(uri: str) -> None:
    with pytest.raises(StageError) as caught:
        StoreUri.parse(uri, MODEL)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    "endpoint",
    ["http://93.184.216.34", "https://user:key@93.184.216.34", "https://93.184.216.34/?a=b", "store"],
)
def test_an_endpoint_must_be_a_plain_https_url(endpoint: str) -> None:
    with pytest.raises(StageError, match="must be an https URL") as caught:
        check_endpoint(endpoint, DATASET, allow_private=False)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN


def test_an_endpoint_on_a_private_address_must_be_allowed() -> None:
    with pytest.raises(StageError, match="public address"):
        check_endpoint("https://127.0.0.1:9000", DATASET, allow_private=False)
    check_endpoint("http://127.0.0.1:9000", DATASET, allow_private=True)


def test_a_failed_precondition_means_a_changed_object() -> None:
    assert isinstance(interpret_error(PreconditionError("secret"), DATASET, ambient=False), Changed)


def test_an_error_without_a_response_is_an_outage() -> None:
    error = interpret_error(GenericError("HTTP error: https://secret"), DATASET, ambient=False)
    assert isinstance(error, Outage)
    assert str(error) == "no response"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("secret"), Reason.MODEL_NOT_FOUND),
        (PermissionDeniedError("secret"), Reason.MODEL_ACCESS_DENIED),
        (
            GenericError("status code: 403: <Error><Code>ExpiredToken</Code></Error>"),
            Reason.MODEL_ACCESS_DENIED,
        ),
        (GenericError("Received redirect without LOCATION, secret"), Reason.MODEL_UNAVAILABLE),
    ],
)
def test_a_rejection_has_the_targets_reason_and_no_text_of_the_library(
    error: Exception, reason: Reason
) -> None:
    found = interpret_error(error, MODEL, ambient=False)
    assert isinstance(found, StageError)
    assert found.reason is reason
    assert "secret" not in found.message


def test_missing_credentials_of_the_pods_identity_may_pass_or_end_as_denied() -> None:
    text = "Error performing PUT http://169.254.169.254/latest/api/token"
    error = interpret_error(GenericError(text), DATASET, ambient=True)
    assert isinstance(error, Outage)
    assert error.final_error is not None
    assert error.final_error.reason is Reason.DATASET_ACCESS_DENIED


@pytest.mark.parametrize(
    ("region", "variables", "used"),
    [
        ("eu-north-1", {"TEAM_AWS_REGION": "eu-west-1"}, "eu-north-1"),
        (None, {"TEAM_AWS_REGION": "eu-west-1", "TEAM_AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        (None, {"TEAM_AWS_DEFAULT_REGION": "eu-west-2", "AWS_REGION": "eu-west-3"}, "eu-west-2"),
    ],
)
def test_the_region_comes_from_the_spec_or_else_from_the_secret(
    region: str | None, variables: dict[str, str], used: str
) -> None:
    sent = request_of(source(None, region=region), KEYS | variables, found_object())
    assert f"/{used}/s3/aws4_request" in sent["authorization"]


def test_a_request_is_signed_with_the_keys_under_the_prefix_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ambient = {
        "AWS_ACCESS_KEY_ID": "AKIAOTHER",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_SKIP_SIGNATURE": "true",
    }
    for name, value in ambient.items():
        monkeypatch.setenv(name, value)
    sent = request_of(source(None), KEYS, found_object())
    assert "Credential=AKIATEST/" in sent["authorization"]
    assert "x-amz-security-token" not in sent
    assert {name: os.environ[name] for name in ambient} == ambient


def test_without_a_prefix_the_pods_identity_signs_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other variables of the cloud's tools have no effect."""
    for name, value in {
        "ACCESS_KEY_ID": "AKIAPOD",
        "SECRET_ACCESS_KEY": "pod",
        "SESSION_TOKEN": "token",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    sent = request_of(source(None, prefix=None), {}, found_object())
    assert "Credential=AKIAPOD/" in sent["authorization"]
    assert sent["x-amz-security-token"] == "token"


def test_malformed_credentials_are_denied_and_the_environment_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/somewhere")
    wanted = StoreUri("gs", "", "bucket", "rows.jsonl")
    with pytest.raises(StageError) as caught:
        open_store(source(None), wanted, MODEL, {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": "hidden"}, None, 30)
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert "gs://" in caught.value.message
    assert "hidden" not in caught.value.message
    assert os.environ["GOOGLE_SERVICE_ACCOUNT"] == "/somewhere"


def test_a_client_with_an_egress_reaches_no_private_address() -> None:
    script = found_object()
    with http_server(script, host="127.0.0.1") as origin, public_egress() as egress:
        place = origin.replace("http:", "https:")
        store = open_store(source(place), URI, DATASET, KEYS, egress, 30)
        with pytest.raises(LIBRARY_ERRORS) as caught:
            obstore.get(store, URI.key)
        assert egress.blocked
    assert script.seen == []
    assert isinstance(interpret_error(caught.value, DATASET, ambient=False), Outage)


@pytest.mark.parametrize(
    "bundle", ["garbage", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"]
)
def test_a_bundle_that_the_client_cannot_read_is_no_fault_of_the_credentials(bundle: str) -> None:
    with pytest.raises(StageError, match="CA bundle") as caught:
        open_store(source(None), URI, DATASET, KEYS, None, 30, bundle)
    assert caught.value.reason is Reason.INVALID_NETWORK_SETTINGS


def test_a_region_from_a_secret_loses_its_white_space() -> None:
    sent = request_of(source(None), KEYS | {"TEAM_AWS_REGION": " eu-west-1\n"}, found_object())
    assert "/eu-west-1/s3/aws4_request" in sent["authorization"]
