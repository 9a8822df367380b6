from __future__ import annotations

from typing import Any

import yaml
from devcluster.kueue import KUEUE

IMAGE = "docker.io/finetune/trainer:dev"
FILE = "controller_manager_config.yaml"


def hook(name: str, group: str) -> dict[str, Any]:
    return {"name": name, "rules": [{"apiGroups": [group], "resources": ["all"]}]}


def manifests() -> list[dict[str, Any]]:
    """Documents of the kinds that Kueue's own manifests have."""
    config = {"webhook": {"port": 9443}, "integrations": {"frameworks": ["batch/job", "pod"]}}
    container = {
        "name": "manager",
        "image": "registry.example/kueue",
        "imagePullPolicy": "Always",
        "command": ["/manager"],
        "args": ["--config=/config.yaml"],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8081}},
        "resources": {"requests": {"cpu": "500m"}},
    }
    pod = {"securityContext": {"runAsNonRoot": True}, "containers": [container]}
    return [
        {"kind": "APIService"},
        {"kind": "Namespace"},
        {"kind": "Deployment", "spec": {"template": {"spec": pod}}},
        {"kind": "ConfigMap", "data": {FILE: yaml.safe_dump(config)}},
        {
            "kind": "MutatingWebhookConfiguration",
            "webhooks": [
                hook("pod", ""),
                hook("job", "batch"),
                hook("jobset", "jobset.x-k8s.io"),
                hook("workload", "kueue.x-k8s.io"),
            ],
        },
    ]


def test_kueue_runs_the_binary_of_this_checkout_without_an_image_of_its_own() -> None:
    found = {document["kind"]: document for document in KUEUE.adapted(manifests(), IMAGE)}
    assert list(found) == ["Namespace", "Deployment", "ConfigMap", "MutatingWebhookConfiguration"]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == (IMAGE, "IfNotPresent")
    assert container["command"] == ["/opt/finetune/.cache/bin/kueue"]
    assert container["args"] == ["--config=/config.yaml"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_kueue_is_asked_about_jobs_job_sets_and_queues_only() -> None:
    found = {document["kind"]: document for document in KUEUE.adapted(manifests(), IMAGE)}
    config = yaml.safe_load(found["ConfigMap"]["data"][FILE])
    assert config["integrations"]["frameworks"] == ["batch/job", "jobset.x-k8s.io/jobset"]
    assert config["webhook"] == {"port": 9443}
    hooks = [each["name"] for each in found["MutatingWebhookConfiguration"]["webhooks"]]
    assert hooks == ["job", "jobset", "workload"]
