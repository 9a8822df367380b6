"""Proxies and CA bundles of a stage's pod."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.manifests.jobs import build_job
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import make_job, make_spec

HOST = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
NETWORK = {
    "httpsProxy": "http://proxy.example:3128",
    "noProxy": ".svc",
    "caBundle": {"configMapKeyRef": {"name": "corporate", "key": "ca.crt"}},
}


def build_with_network(job: dict[str, Any], administrator: dict[str, Any], stage: Stage) -> dict[str, Any]:
    trainer = TrainerSettings.model_validate(
        {"image": "registry.example/finetune/trainer:1", "network": administrator}
    )
    spec = make_spec(network=job)
    built = build_job(
        make_job(spec), FineTuneJobSpec.parse(spec), stage, 0, {"version": "1.0"}, trainer, host=HOST
    )
    pod: dict[str, Any] = built["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_every_stage_gets_proxies_and_ca_bundles(stage: Stage) -> None:
    own = {"caBundle": {"secretKeyRef": {"name": "own", "key": "store.pem"}}, "httpProxy": "http://own:1"}
    pod = build_with_network(own, NETWORK, stage)
    (trainer,) = pod["containers"]
    plain = {entry["name"]: entry.get("value") for entry in trainer["env"]}
    assert plain["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert plain["HTTP_PROXY"] == "http://own:1"
    assert plain["NO_PROXY"] == ".svc"
    assert plain["FINETUNE_JOB_PROXIES"] == "HTTP_PROXY"
    assert plain["FINETUNE_CA_BUNDLE"] == (
        "/etc/finetune-ca/ca-bundle/ca.crt:/etc/finetune-ca/job-ca-bundle/store.pem"
    )
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["ca-bundle"]["configMap"] == {
        "name": "corporate",
        "items": [{"key": "ca.crt", "path": "ca.crt"}],
        "optional": True,
    }
    assert volumes["job-ca-bundle"]["secret"] == {
        "secretName": "own",
        "items": [{"key": "store.pem", "path": "store.pem"}],
        "optional": True,
    }
    mounted = {mount["name"]: mount for mount in trainer["volumeMounts"]}
    assert mounted["ca-bundle"] == {
        "name": "ca-bundle",
        "mountPath": "/etc/finetune-ca/ca-bundle",
        "readOnly": True,
    }


def test_only_prepare_gets_a_proxy_with_a_password() -> None:
    reference = {"name": "proxy", "key": "url"}
    for stage in WORK_STAGES:
        (trainer,) = build_with_network({}, {"proxySecretRef": reference}, stage)["containers"]
        found = [entry for entry in trainer["env"] if entry["name"].endswith("_PROXY")]
        names = ["HTTPS_PROXY", "HTTP_PROXY"] if stage is Stage.PREPARE else []
        assert found == [{"name": name, "valueFrom": {"secretKeyRef": reference}} for name in names]


def test_without_network_settings_a_pod_has_none() -> None:
    pod = build_with_network({}, {}, Stage.PREPARE)
    assert "PROXY" not in json.dumps(pod)
    assert "finetune-ca" not in json.dumps(pod)


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_pods_with_network_settings_are_valid_kubernetes(stage: Stage) -> None:
    pod = build_with_network({"proxySecretRef": {"name": "proxy", "key": "url"}}, NETWORK, stage)
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo"}, "spec": pod}
    kubernetes_validate.validate(manifest, "1.36", strict=True)


def test_a_jobs_own_hub_goes_beside_the_administrators_to_every_client_of_hubs() -> None:
    spec = make_spec(
        network={"huggingFaceEndpoint": "https://hub.team.example"},
        output={"destinations": [{"name": "a", "s3": {"uri": "s3://models/bot"}}]},
    )
    trainer = TrainerSettings(image="trainer", hugging_face_endpoint="https://hub.example")
    for stage in Stage:
        body = build_job(
            make_job(spec), FineTuneJobSpec.parse(spec), stage, 0, {"version": "1.9"}, trainer, host=HOST
        )
        pod = body["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            found = {each["name"]: each.get("value") for each in container["env"]}
            uses_hub = "FINETUNE_STEP" in found or stage is Stage.PREPARE
            assert found.get("FINETUNE_JOB_HUB") == ("https://hub.team.example" if uses_hub else None)
            assert found.get("HF_ENDPOINT") == ("https://hub.example" if uses_hub else None)
