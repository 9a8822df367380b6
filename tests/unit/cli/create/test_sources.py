from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.create.sources import dataset_source, model_source, output_of
from finetune_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "secret", "source"),
    [
        ("org/base", None, {"huggingFace": {"repository": "org/base"}}),
        ("hf://org/base@v1", None, {"huggingFace": {"repository": "org/base", "revision": "v1"}}),
        (
            "hf://org/base",
            "hub",
            {"huggingFace": {"repository": "org/base", "tokenSecretRef": {"name": "hub", "key": "token"}}},
        ),
        (
            "hf://org/base",
            "hub/key",
            {"huggingFace": {"repository": "org/base", "tokenSecretRef": {"name": "hub", "key": "key"}}},
        ),
        ("pvc://models", None, {"persistentVolumeClaim": {"claimName": "models"}}),
        ("pvc://models/a/b/", None, {"persistentVolumeClaim": {"claimName": "models", "path": "a/b"}}),
        ("s3://bucket/key", "aws", {"s3": {"uri": "s3://bucket/key", "secretRef": {"name": "aws"}}}),
        ("gs://bucket/key", None, {"gcs": {"uri": "gs://bucket/key"}}),
        ("az://account/container/key", None, {"azure": {"uri": "az://account/container/key"}}),
    ],
)
def test_every_place_of_a_model_has_a_short_form(
    text: str, secret: str | None, source: dict[str, Any]
) -> None:
    assert model_source(text, secret) == source


def test_a_dataset_may_also_be_a_key_of_a_config_map_or_a_url_in_a_secret() -> None:
    assert dataset_source("configmap://rows/a.jsonl", None) == {
        "configMap": {"name": "rows", "key": "a.jsonl"}
    }
    assert dataset_source("secret://signed/url", None) == {
        "url": {"secretKeyRef": {"name": "signed", "key": "url"}}
    }


@pytest.mark.parametrize(
    "text", ["base", "ftp://x/y", "hf://", "hf://org", "hf://a/b/c", "configmap://a/b", ""]
)
def test_an_unknown_place_of_a_model_is_refused_with_the_known_forms(text: str) -> None:
    with pytest.raises(UsageError, match="must be hf://ORG/NAME"):
        model_source(text, None)


def test_a_url_is_refused_without_repeating_its_signature() -> None:
    with pytest.raises(UsageError, match="must be in a Secret") as refused:
        dataset_source("https://user:password@host/rows?signature=abc", None)
    assert "password" not in str(refused.value)
    with pytest.raises(UsageError) as refused:
        model_source("https://user:password@host/rows?signature=abc", None)
    assert "password" not in str(refused.value)
    assert "signature" not in str(refused.value)


@pytest.mark.parametrize("text", ["pvc://data", "secret://a", "configmap://a/", "oci://x/y"])
def test_a_dataset_must_be_a_file_or_a_key(text: str) -> None:
    with pytest.raises(UsageError):
        dataset_source(text, None)


def test_one_claim_is_the_destination_and_everything_else_a_list() -> None:
    assert output_of(("pvc://models",), None) == {
        "destination": {"persistentVolumeClaim": {"claimName": "models"}}
    }
    assert output_of(("s3://bucket/bot",), "aws") == {
        "destinations": [{"name": "s3", "s3": {"uri": "s3://bucket/bot", "secretRef": {"name": "aws"}}}]
    }


def test_destinations_of_one_kind_get_different_names() -> None:
    found = output_of(("s3://a/x", "s3://b/x", "oci://registry/x:1", "hf://org/x"), None)["destinations"]
    assert [destination["name"] for destination in found] == ["s3-1", "s3-2", "oci", "hub"]
    assert found[2]["oci"] == {"reference": "registry/x:1"}
    assert found[3]["huggingFace"] == {"repository": "org/x"}
