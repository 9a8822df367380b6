"""The contract tests compare whole run specs with the schema and the fixtures; these are the single rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import MountPaths, pod_paths
from finetune_operator.contract.run_spec import Limits, build_run_spec
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
