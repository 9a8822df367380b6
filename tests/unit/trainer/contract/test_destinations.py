from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.contract.destinations import DirectoryDestination, NamedDestination
from finetune_trainer.telemetry.redaction import secrets_of
from pydantic import TypeAdapter, ValidationError

from tests.support.results import fixture

READER: TypeAdapter[Any] = TypeAdapter(NamedDestination)
BUCKET = {"name": "bucket", "kind": "ObjectStore", "uri": "s3://models/bot"}
CLAIM = {"name": "claim", "kind": "Directory", "path": "/destinations/claim", "uri": "pvc://a/b"}


def test_the_kind_decides_and_the_address_is_for_people() -> None:
    bucket, claim = READER.validate_python(BUCKET), READER.validate_python(CLAIM)
    assert (bucket.address, bucket.overwrite) == ("s3://models/bot", False)
    assert isinstance(claim, DirectoryDestination)
    assert claim.address == "pvc://a/b"


@pytest.mark.parametrize("change", [{"kind": "Ftp"}, {"name": ""}, {"surprise": 1}])
def test_an_unknown_destination_is_rejected_and_never_skipped(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        READER.validate_python({**BUCKET, **change})


def test_the_credentials_of_a_destination_are_secrets(make_run: Any, run_document: dict[str, Any]) -> None:
    output = {
        **run_document["output"],
        "destinations": [{**BUCKET, "credentialsPrefix": "FINETUNE_DESTINATION_BUCKET_"}],
    }
    environment = {"FINETUNE_DESTINATION_BUCKET_AWS_SECRET_ACCESS_KEY": "very-secret-key"}
    assert "very-secret-key" in secrets_of(make_run(output=output), environment)


def test_a_repository_of_a_hub_is_private_unless_the_run_spec_says_otherwise() -> None:
    hub = {"name": "hub", "kind": "HuggingFace", "repository": "team/bot", "tokenVariable": "HUB_TOKEN"}
    found = READER.validate_python(hub)
    assert (found.private, found.address) == (True, "hf://team/bot@main")
    for wrong in ({"repository": "bot"}, {"repository": "a/../b"}, {"tokenVariable": None}):
        with pytest.raises(ValidationError):
            READER.validate_python({**hub, **wrong})


def test_the_token_of_a_hub_is_a_secret(make_run: Any, run_document: dict[str, Any]) -> None:
    hub = {"name": "hub", "kind": "HuggingFace", "repository": "team/bot", "tokenVariable": "HUB_TOKEN"}
    output = {**run_document["output"], "destinations": [hub]}
    assert secrets_of(make_run(output=output), {"HUB_TOKEN": "hf_secret"}) == ["hf_secret"]


def test_the_fixture_of_a_copied_result_names_both_places() -> None:
    assert [each["name"] for each in fixture("merge-copied")["merge"]["publications"]] == ["bucket", "claim"]


def test_the_image_has_a_tag_of_its_own_also_beside_the_longest_one() -> None:
    registry = READER.validate_python({"name": "a", "kind": "Oci", "reference": "host/bot:1"})
    assert registry.image_tag_of("1") == "1-image"
    assert len(registry.image_tag_of("x" * 128)) == 128
    named = READER.validate_python({"name": "a", "kind": "Oci", "reference": "host/bot:1", "imageTag": "v"})
    assert named.image_tag_of("1") == "v"
