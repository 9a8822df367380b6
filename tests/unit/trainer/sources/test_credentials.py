"""Credentials of object stores in the environment."""

from __future__ import annotations

import pytest
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.credentials import credentials
from finetune_trainer.sources.fetch_target import DATASET

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
SETTINGS = {"access_key_id": "id", "secret_access_key": "key"}


def source(prefix: str | None) -> ObjectStoreSource:
    return ObjectStoreSource.model_validate(
        {"kind": "ObjectStore", "uri": "s3://bucket/rows", "credentialsPrefix": prefix}
    )


def prefixed(prefix: str, variables: dict[str, str]) -> dict[str, str]:
    return {prefix + name: value for name, value in variables.items()}


def test_only_variables_under_the_prefix_are_used() -> None:
    environment = {**prefixed("P_", KEYS), "AWS_ACCESS_KEY_ID": "other"}
    assert credentials(source("P_"), "s3", DATASET, environment) == SETTINGS


def test_without_a_prefix_and_credentials_the_pods_identity_is_used() -> None:
    assert credentials(source(None), "s3", DATASET, {}) == {}
    assert credentials(source(None), "s3", DATASET, KEYS) == SETTINGS


def test_an_incomplete_set_under_a_prefix_is_denied_with_the_names_of_the_keys() -> None:
    with pytest.raises(StageError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        credentials(
            source("P_"), "s3", DATASET, {"P_AWS_ACCESS_KEY_ID": "id", "P_AWS_SECRET_ACCESS_KEY": " "}
        )
    assert caught.value.reason is Reason.DATASET_ACCESS_DENIED


def test_a_session_token_belongs_to_s3_only() -> None:
    token = {"AWS_SESSION_TOKEN": "token"}
    assert credentials(source(None), "s3", DATASET, {**KEYS, **token}) == {
        **SETTINGS,
        "session_token": "token",
    }
    azure = {"AZURE_STORAGE_ACCOUNT_KEY": "key", **token}
    assert credentials(source(None), "az", DATASET, azure) == {"account_key": "key"}


def test_the_first_complete_set_is_used() -> None:
    azure = {"AZURE_STORAGE_SAS_TOKEN": "sas", "AZURE_CLIENT_ID": "id"}
    assert credentials(source(None), "az", DATASET, azure) == {"sas_key": "sas"}


def test_white_space_around_a_value_is_removed() -> None:
    environment = {
        name: f"\ufeff {value}\r\n" for name, value in {**KEYS, "AWS_SESSION_TOKEN": "token"}.items()
    }
    assert credentials(source(None), "s3", DATASET, environment) == {**SETTINGS, "session_token": "token"}


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_value_that_cannot_be_sent_is_refused_by_its_name(name: str) -> None:
    environment = prefixed("P_", {**KEYS, name: "two\nlines"})
    with pytest.raises(StageError, match=f"{name} for dataset.source .* line break at position 4") as caught:
        credentials(source("P_"), "s3", DATASET, environment)
    assert caught.value.reason is Reason.DATASET_ACCESS_DENIED
    assert "lines" not in caught.value.message


def test_a_key_in_json_may_have_several_lines() -> None:
    environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": '{\n"private_key": "a\\nb"}\n'}
    found = credentials(source(None), "gs", DATASET, environment)
    assert found == {"service_account_key": '{\n"private_key": "a\\nb"}'}
