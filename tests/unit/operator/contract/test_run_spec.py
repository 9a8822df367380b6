"""The contract tests compare whole run specs with the schema and the fixtures; these are the single rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.run_spec import JobIdentity, Limits, MountPaths, build_run_spec, pod_paths
from finetune_operator.sizing.planning import make_plan

from tests.support.operator import make_spec

JOB = JobIdentity("team", "demo", "uid-1")
PROMPTS = {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}}


def parse(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(**changes))


def build(spec: FineTuneJobSpec, paths: MountPaths | None = None) -> dict[str, Any]:
    return build_run_spec(
        job=JOB,
        spec=spec,
        spec_hash="sha256:0",
        plan=make_plan(spec, "cpu"),
        paths=paths or pod_paths(JOB, spec),
        device="cpu",
        limits=Limits(1, 2, allow_private_addresses=True),
        telemetry_port=9500,
        attempt=3,
    )


def test_paths_of_a_pod_are_below_the_mounts_of_their_volumes() -> None:
    spec = parse(
        model={
            "source": {"persistentVolumeClaim": {"claimName": "models", "path": "./smol//1"}},
            "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "chat.jinja"}},
        },
        dataset={
            "source": {"configMap": {"name": "rows", "key": "train.jsonl"}},
            "validation": {"source": {"persistentVolumeClaim": {"claimName": "v", "path": "a/b.jsonl"}}},
            "targetPrompts": PROMPTS,
        },
        modelCache={"claimName": "bases"},
    )
    assert pod_paths(JOB, spec) == MountPaths(
        workspace="/workspace",
        output="/output/demo",
        output_uri="pvc://team/artifacts/demo",
        model="/source/model/smol/1",
        dataset="/source/dataset/train.jsonl",
        validation="/source/validation/a/b.jsonl",
        chat_template="/source/chat-template/chat.jinja",
        target_prompts="/source/target-prompts/prompts.txt",
        model_cache="/model-cache",
    )


def test_an_empty_output_path_is_the_root_of_the_claim() -> None:
    claim = {"claimName": "artifacts", "path": ""}
    paths = pod_paths(JOB, parse(output={"destination": {"persistentVolumeClaim": claim}}))
    assert (paths.output, paths.output_uri) == ("/output", "pvc://team/artifacts")


def test_remote_sources_have_no_path() -> None:
    spec = parse(
        model={"source": {"huggingFace": {"repository": "a/b"}}},
        dataset={"source": {"s3": {"uri": "s3://bucket/rows"}}},
    )
    paths = pod_paths(JOB, spec)
    assert (paths.model, paths.dataset, paths.validation, paths.chat_template) == (None, None, None, None)


def test_exactly_one_training_length_is_written() -> None:
    by_epochs, by_steps = build(parse())["training"], build(parse(training={"maximumSteps": 7}))["training"]
    assert by_epochs["epochs"] == 3.0
    assert "maximumSteps" not in by_epochs
    assert by_steps["maximumSteps"] == 7
    assert "epochs" not in by_steps


def test_newer_members_are_left_out_at_their_default() -> None:
    run = build(parse())
    assert not {"format", "thresholds", "targetPromptsPath"} & run["dataset"].keys()
    assert "modelCache" not in run
    dataset = {**make_spec()["dataset"], "format": "Messages", "thresholds": {"minimumRows": 5}}
    found = build(parse(dataset={**dataset, "targetPrompts": PROMPTS}))["dataset"]
    assert found["format"] == "Messages"
    assert found["thresholds"]["minimumRows"] == 5
    assert found["targetPromptsPath"] == "/source/target-prompts/prompts.txt"


def test_secrets_are_named_by_their_variables_and_never_contained() -> None:
    reference = {"name": "hub", "key": "token"}
    spec = parse(
        model={"source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": reference}}},
        dataset={
            "source": {"url": {"secretKeyRef": {"name": "link", "key": "url"}}},
            "validation": {"source": {"s3": {"uri": "s3://bucket/a", "secretRef": {"name": "store"}}}},
        },
    )
    run = build(spec)
    assert run["model"]["source"]["tokenVariable"] == "FINETUNE_MODEL_TOKEN"
    assert run["dataset"]["source"] == {"kind": "Url", "urlVariable": "FINETUNE_DATASET_URL"}
    assert run["dataset"]["validation"]["source"] == {
        "kind": "ObjectStore",
        "uri": "s3://bucket/a",
        "credentialsPrefix": "FINETUNE_VALIDATION_",
    }


def test_a_missing_path_of_a_file_is_an_error() -> None:
    spec = parse()
    with pytest.raises(ValueError, match=r"paths\.model must be a path"):
        build(spec, replace(pod_paths(JOB, spec), model=None))
