from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import MountPaths, pod_paths

from tests.support.operator import make_spec

JOB = JobIdentity("team", "demo", "uid-1")
PROMPTS = {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}}


def parse(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(**changes))


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


def test_a_list_of_destinations_is_staged_in_the_workspace_and_named_by_its_first() -> None:
    bucket = {"name": "bucket", "s3": {"uri": "s3://models/bot"}}
    claim = {"name": "claim", "persistentVolumeClaim": {"claimName": "artifacts"}}
    registry = {"name": "registry", "oci": {"reference": "registry.example.com/team/bot:1"}}
    first = {
        "s3://models/bot": (bucket, claim),
        "pvc://team/artifacts/demo": (claim, bucket),
        "oci://registry.example.com/team/bot:1": (registry, claim),
    }
    for uri, places in first.items():
        paths = pod_paths(JOB, parse(output={"destinations": list(places)}))
        assert (paths.output, paths.output_uri) == ("/workspace/artifacts", uri)
        assert paths.destinations == {"claim": ("/destinations/claim/demo", "pvc://team/artifacts/demo")}


def test_a_signing_key_is_a_file_of_its_mount() -> None:
    output = {
        "destination": {"persistentVolumeClaim": {"claimName": "artifacts"}},
        "signing": {"keySecretRef": {"name": "signer", "key": "key.pem"}},
    }
    assert pod_paths(JOB, parse(output=output)).signing_key == "/source/signing/key.pem"
