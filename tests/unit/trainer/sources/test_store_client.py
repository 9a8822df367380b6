"""URIs of object stores and the meaning of the library's errors."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import DATASET, MODEL
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.store_client import Changed, StoreUri, check_endpoint, interpret_error
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError


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
