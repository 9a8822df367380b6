from __future__ import annotations

import re
from typing import Any

import pytest
from finetune_operator.api.sources import (
    AZURE_URI,
    ENDPOINT,
    GCS_URI,
    S3_URI,
    ClaimPath,
    DatasetSource,
    KeyRef,
    ModelSource,
)
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("s3", {"uri": "s3://bucket/a"}),
        ("gcs", {"uri": "gs://bucket/a"}),
        ("azure", {"uri": "az://account/container/a"}),
    ],
)
@pytest.mark.parametrize("kind", [ModelSource, DatasetSource])
def test_each_object_store_is_the_object_store_of_its_source(
    kind: type[ModelSource | DatasetSource], member: str, value: dict[str, str]
) -> None:
    store = kind.model_validate({member: value}).object_store
    assert store is not None
    assert store.uri == value["uri"]


@pytest.mark.parametrize(
    "source",
    [ModelSource.model_validate({"huggingFace": {"repository": "a/b"}}), DatasetSource(), ModelSource()],
)
def test_other_sources_have_no_object_store(source: ModelSource | DatasetSource) -> None:
    assert source.object_store is None


@pytest.mark.parametrize(
    ("pattern", "uri", "accepted"),
    [
        (S3_URI, "s3://bucket/folder/a.jsonl", True),
        (S3_URI, "s3://bucket/", False),
        (S3_URI, "s3://bucket//a", False),
        (S3_URI, "s3://user@bucket/a", False),
        (GCS_URI, "gs://bucket/a", True),
        (GCS_URI, "gs://Bucket/a", False),
        (AZURE_URI, "az://account1/container/a", True),
        (AZURE_URI, "az://account1/a", False),
        (ENDPOINT, "https://store.example:9000/path", True),
        (ENDPOINT, "https://user:password@store.example", False),
        (ENDPOINT, "https://store.example/?X-Amz-Signature=1", False),
        (ENDPOINT, "ftp://store.example", False),
    ],
)
def test_uri_patterns_accept_no_user_query_or_incomplete_key(
    pattern: str, uri: str, *, accepted: bool
) -> None:
    assert (re.fullmatch(pattern, uri) is not None) is accepted


def test_values_are_immutable_and_reject_unknown_members() -> None:
    claim = ClaimPath.model_validate({"claimName": "models"})
    assert claim.path == ""
    with pytest.raises(ValidationError, match="frozen"):
        claim.path = "other"  # type: ignore[misc]  # the assignment must fail at run time too
    with pytest.raises(ValidationError, match="subPath"):
        ClaimPath.model_validate({"claimName": "models", "subPath": "a"})


@pytest.mark.parametrize("reference", [{"name": "a", "key": "a/b"}, {"name": "", "key": "a"}, {"name": "a"}])
def test_a_reference_needs_a_name_and_a_lawful_key(reference: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KeyRef.model_validate(reference)
