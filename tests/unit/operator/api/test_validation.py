from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError

from tests.support.operator import make_spec

TOKEN = {"tokenSecretRef": {"name": "hub", "key": "token"}}
CLAIM = {"persistentVolumeClaim": {"claimName": "c"}}
BUCKET = {"s3": {"uri": "s3://bucket/a"}}
CONFIG_MAP = {"configMap": {"name": "rows", "key": "train.jsonl"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"source": {}}},
            "exactly one of persistentVolumeClaim, huggingFace, s3, gcs and azure, found 0",
        ),
        (
            {"model": {"source": {"s3": {"uri": "s3://bucket"}}}},
            "model.source.s3.uri must be s3://BUCKET/KEY",
        ),
        ({"model": {"source": {"gcs": {"uri": "s3://bucket/a"}}}}, "must be gs://BUCKET/KEY"),
        ({"dataset": {"source": {"azure": {"uri": "az://a/b/c"}}}}, "must be az://ACCOUNT/CONTAINER/KEY"),
        (
            {"dataset": {"source": {"s3": {"uri": "s3://bucket/a", "endpoint": "https://u:p@host"}}}},
            "endpoint must be an http or https URL",
        ),
        (
            {"dataset": {"source": {"huggingFace": {"repository": "a", "path": "b", "configuration": "c"}}}},
            "path or configuration, found both",
        ),
        (
            {"dataset": {"source": {"huggingFace": {"repository": "a", "path": "../b"}}}},
            "dataset.source.huggingFace.path must be a relative path",
        ),
        ({"dataset": {"source": CONFIG_MAP, "format": "Text"}}, "plain text has no answers to learn"),
        ({"dataset": {"source": CONFIG_MAP, "thresholds": {"leaked": 1}}}, "dataset.thresholds.leaked"),
        ({"dataset": {"source": {}}}, "exactly one of configMap"),
        ({"dataset": {"source": CLAIM}}, "must name a file"),
        ({"training": {"epochs": 1, "maximumSteps": 2}}, "at most one of epochs and maximumSteps"),
        ({"training": {"microBatchSize": 5}}, "must divide"),
        ({"training": {"parallelism": "FullyShard"}}, "needs resources.gpus of at least 2, found 1"),
        (
            {
                "training": {"parallelism": "FullyShard", "lora": {"variant": "DoRA"}},
                "resources": {"gpus": 2},
            },
            "variant Standard or RankStabilized",
        ),
        ({"training": {"parallelism": "Pipeline"}}, "spec.training.parallelism"),
        ({"resources": {"gpus": 4, "gpusPerNode": 3}}, "gpusPerNode must divide resources.gpus"),
        ({"resources": {"gpus": 17}}, "at most training.effectiveBatchSize"),
        ({"resources": {"gpus": 2, "maximumGpus": 4}}, "at most one of gpus and maximumGpus, found 2 and 4"),
        ({"resources": {"maximumGpus": 0}}, "spec.resources.maximumGpus"),
        ({"resources": {"maximumGpus": 65}}, "spec.resources.maximumGpus"),
        (
            {"resources": {"maximumGpus": 2, "gpusPerNode": 4}},
            "gpusPerNode must be at most resources.maximumGpus, found 4 and 2",
        ),
        (
            {"resources": {"maximumGpus": 32, "gpusPerNode": 17}},
            "resources.gpusPerNode must be at most training.effectiveBatchSize",
        ),
        (
            {"resources": {"maximumGpus": 1}, "training": {"parallelism": "FullyShard"}},
            "needs resources.maximumGpus of at least 2, found 1",
        ),
        (
            {
                "resources": {"maximumGpus": 2},
                "training": {"parallelism": "FullyShard", "effectiveBatchSize": 1},
            },
            "needs training.effectiveBatchSize of at least 2, found 1",
        ),
        ({"training": {"learningRate": 0}}, "spec.training.learningRate"),
        (
            {"output": {"destination": {"persistentVolumeClaim": {"claimName": "c", "path": "a/../b"}}}},
            "without '..'",
        ),
        (
            {"output": {"destination": {"persistentVolumeClaim": {"claimName": "c", "path": "/a"}}}},
            "relative path",
        ),
        ({"output": {"artifacts": ["Merged", "Merged"], "destination": CLAIM}}, "must not repeat"),
        ({"output": {"artifacts": ["BaseAsTrained"], "destination": CLAIM}}, "must have Adapter or Merged"),
        ({"output": {"artifacts": ["Base"], "destination": CLAIM}}, "spec.output.artifacts.0"),
        ({"output": {"mergeOnto": "Base", "destination": CLAIM}}, "spec.output.mergeOnto"),
        ({"output": {}}, "exactly one of destination and destinations, found neither"),
        (
            {"output": {"destination": CLAIM, "destinations": [{"name": "a", **CLAIM}]}},
            "exactly one of destination and destinations, found both",
        ),
        (
            {"output": {"destinations": [{"name": "a"}]}},
            "persistentVolumeClaim, s3, gcs, azure, oci, huggingFace, found 0",
        ),
        ({"output": {"destinations": [{"name": "a", **CLAIM, **BUCKET}]}}, "huggingFace, found 2"),
        (
            {"output": {"destinations": [{"name": "a", **CLAIM}, {"name": "a", **BUCKET}]}},
            "must not repeat a name",
        ),
        (
            {"output": {"destinations": [{"name": "a", **CLAIM}, {"name": "b", "overwrite": True, **CLAIM}]}},
            "output.destinations[a] must have a place of its own",
        ),
        (
            {
                "output": {
                    "destinations": [
                        {"name": "inner", "s3": {"uri": "s3://bucket/a/b"}},
                        {"name": "outer", "s3": {"uri": "s3://bucket/a/"}},
                    ]
                }
            },
            "output.destinations[inner] must have a place of its own",
        ),
        (
            {"output": {"destinations": [{"name": "a", "s3": {"uri": "s3://bucket"}}]}},
            "output.destinations[a].s3.uri must be s3://BUCKET/KEY",
        ),
        (
            {
                "output": {
                    "destinations": [{"name": "a", "persistentVolumeClaim": {"claimName": "c", "path": "/x"}}]
                }
            },
            "output.destinations[a].persistentVolumeClaim.path must be a relative path",
        ),
        (
            {"output": {"destinations": [{"name": "a", "oci": {"reference": "host/name"}}]}},
            "spec.output.destinations.0.oci.reference",
        ),
        (
            {
                "output": {
                    "destinations": [{"name": "a", "oci": {"reference": "host/name:1", "imageTag": "-"}}]
                }
            },
            "spec.output.destinations.0.oci.imageTag",
        ),
        (
            {"output": {"destinations": [{"name": "a", "oci": {"reference": "h/n:1", "imageTag": "1"}}]}},
            "output.destinations[a] must have a place of its own",
        ),
        (
            {
                "output": {
                    "destinations": [
                        {"name": "a", "oci": {"reference": "host/name:1"}},
                        {"name": "b", "oci": {"reference": "host/name:1-image"}},
                    ]
                }
            },
            "output.destinations[a] must have a place of its own",
        ),
        (
            {"output": {"destinations": [{"name": "a", "huggingFace": {"repository": "bot", **TOKEN}}]}},
            "spec.output.destinations.0.huggingFace.repository",
        ),
        (
            {"output": {"destinations": [{"name": "a", "huggingFace": {"repository": "team/bot"}}]}},
            "spec.output.destinations.0.huggingFace.tokenSecretRef",
        ),
        (
            {
                "output": {
                    "destinations": [
                        {"name": "a", "huggingFace": {"repository": "team/bot", **TOKEN}},
                        {"name": "b", "huggingFace": {"repository": "Team/Bot", "revision": "main", **TOKEN}},
                    ]
                }
            },
            "output.destinations[a] must have a place of its own",
        ),
        ({"output": {"destinations": [{"name": "A b", **CLAIM}]}}, "spec.output.destinations.0.name"),
        ({"evaluation": {"gate": "Never"}}, "spec.evaluation.gate"),
        ({"podTemplate": {"labels": {"finetune.dev/job": "x"}}}, "belong to the operator"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a b": 1}}}, "identifiers"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a": None}}}, "chatTemplateArguments.a"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a": []}}}, "chatTemplateArguments.a"),
        ({"resources": {"train": {"memory": "lots"}}}, "spec.resources.train.memory"),
        ({"unknown": 1}, "spec.unknown"),
    ],
)
def test_an_impossible_spec_is_rejected_with_the_violation(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        check("demo", FineTuneJobSpec.parse(make_spec(**changes)))
    assert words in str(caught.value)


def test_a_rejected_uri_is_shown_without_its_secrets() -> None:
    dataset = {"source": {"s3": {"uri": "https://key:S3CRET@bucket/a?X-Amz-Signature=S3CRET"}}}
    with pytest.raises(InvalidSpecError) as caught:
        check("demo", FineTuneJobSpec.parse(make_spec(dataset=dataset)))
    assert "S3CRET" not in str(caught.value)
    assert "bucket/a" in str(caught.value)


@pytest.mark.parametrize(
    ("member", "uri"),
    [
        ("s3", "s3://My_Bucket.1/a folder/b=c+d%20?.jsonl"),
        ("s3", "s3://abc/d"),
        ("gcs", "gs://my_bucket/a/b.parquet"),
        ("azure", "az://account1/$web/a"),
    ],
)
def test_every_name_that_stores_allow_is_accepted(member: str, uri: str) -> None:
    check("demo", FineTuneJobSpec.parse(make_spec(dataset={"source": {member: {"uri": uri}}})))


def test_a_name_too_long_for_child_objects_is_rejected() -> None:
    check("n" * 45, FineTuneJobSpec.parse(make_spec()))
    with pytest.raises(InvalidSpecError, match="45 characters, found 46"):
        check("n" * 46, FineTuneJobSpec.parse(make_spec()))


def test_neighbors_in_one_bucket_and_one_claim_are_places_of_their_own() -> None:
    places = [
        {"s3": {"uri": "s3://bucket/bot"}},
        {"s3": {"uri": "s3://bucket/bot-2"}},
        {"s3": {"uri": "s3://bucket/bot", "endpoint": "https://other.example.com"}},
        {"persistentVolumeClaim": {"claimName": "c"}},
        {"persistentVolumeClaim": {"claimName": "c", "path": "other"}},
        {"oci": {"reference": "host/bot:1"}},
        {"oci": {"reference": "host/bot:2"}},
    ]
    named = [{"name": f"place-{number}", **place} for number, place in enumerate(places)]
    check("demo", FineTuneJobSpec.parse(make_spec(output={"destinations": named})))


def test_two_branches_of_one_repository_are_places_of_their_own() -> None:
    hub = {"repository": "team/bot", **TOKEN}
    named = [{"name": "a", "huggingFace": hub}, {"name": "b", "huggingFace": {**hub, "revision": "v2"}}]
    check("demo", FineTuneJobSpec.parse(make_spec(output={"destinations": named})))
