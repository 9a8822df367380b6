from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.credentials import (
    SecretPrefix,
    dataset_sources,
    destination_secret_prefixes,
    destination_secret_variables,
    secret_prefixes,
    secret_variables,
)

from tests.support.operator import make_spec

TOKEN = {"name": "hub", "key": "token"}


def parse(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(**changes))


def test_a_job_without_secrets_needs_no_variables() -> None:
    spec = parse()
    assert secret_variables(spec) == []
    assert secret_prefixes(spec) == []
    assert [prefix for prefix, _ in dataset_sources(spec)] == ["FINETUNE_DATASET_"]


def test_urls_and_tokens_become_one_variable_each() -> None:
    spec = parse(
        model={"source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": TOKEN}}},
        dataset={
            "source": {"huggingFace": {"repository": "a/c", "tokenSecretRef": TOKEN}},
            "validation": {"source": {"url": {"secretKeyRef": {"name": "link", "key": "url"}}}},
        },
    )
    found = {item.variable: (item.reference.name, item.reference.key) for item in secret_variables(spec)}
    assert found == {
        "FINETUNE_MODEL_TOKEN": ("hub", "token"),
        "FINETUNE_DATASET_TOKEN": ("hub", "token"),
        "FINETUNE_VALIDATION_URL": ("link", "url"),
    }
    assert secret_prefixes(spec) == []


def test_object_stores_take_whole_secrets_with_the_prefix_of_their_source() -> None:
    spec = parse(
        model={"source": {"s3": {"uri": "s3://bucket/model", "secretRef": {"name": "models"}}}},
        dataset={
            "source": {"gcs": {"uri": "gs://bucket/rows"}},
            "validation": {"source": {"azure": {"uri": "az://acc/box/rows", "secretRef": {"name": "rows"}}}},
        },
    )
    assert secret_variables(spec) == []
    assert secret_prefixes(spec) == [
        SecretPrefix("FINETUNE_MODEL_", "models"),
        SecretPrefix("FINETUNE_VALIDATION_", "rows"),
    ]


def test_each_destination_with_a_secret_has_a_prefix_of_its_own() -> None:
    store = {"uri": "s3://bucket/a", "secretRef": {"name": "keys"}}
    spec = parse(
        output={
            "destinations": [
                {"name": "eu-west", "s3": store},
                {"name": "own-identity", "gcs": {"uri": "gs://bucket/a"}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
            ]
        }
    )
    assert destination_secret_prefixes(spec) == [SecretPrefix("FINETUNE_DESTINATION_EU_WEST_", "keys")]
    assert secret_prefixes(spec) == []


def test_a_hub_that_receives_the_artifacts_takes_one_key_of_a_secret() -> None:
    hub = {"repository": "team/bot", "tokenSecretRef": {"name": "hub", "key": "write"}}
    spec = parse(output={"destinations": [{"name": "my-hub", "huggingFace": hub}]})
    found = [
        (item.variable, item.reference.name, item.reference.key)
        for item in destination_secret_variables(spec)
    ]
    assert found == [("FINETUNE_DESTINATION_MY_HUB_TOKEN", "hub", "write")]
    assert destination_secret_prefixes(spec) == []
    assert secret_variables(spec) == []
