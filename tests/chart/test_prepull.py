"""The DaemonSet that keeps the trainer's image on GPU nodes, and the pod of `helm test`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, Manifest, only, render

ON = ("--set", "prePull.enabled=true")


def restricted(pod: dict[str, Any]) -> bool:
    """True if a pod meets the restricted Pod Security level with a read-only root and no API token."""
    security, containers = pod["securityContext"], pod["containers"]
    return (
        security["runAsNonRoot"]
        and security["seccompProfile"]["type"] == "RuntimeDefault"
        and pod["automountServiceAccountToken"] is False
        and all(
            each["securityContext"]
            == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for each in containers
        )
    )


def daemon(*arguments: str) -> Manifest:
    return only(render(*ON, *arguments), "DaemonSet")


def test_nothing_is_pulled_ahead_unless_it_is_asked_for() -> None:
    assert not [item for item in render() if item["kind"] == "DaemonSet"]


def test_gpu_nodes_keep_the_image_that_the_stages_use() -> None:
    objects = render(*ON, "--set-string", "trainer.image.tag=7")
    settings = yaml.safe_load(only(objects, "ConfigMap")["data"]["settings.json"])
    pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert [each["image"] for each in pod["containers"]] == [settings["trainer"]["image"]]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert restricted(pod)
    assert "nvidia.com/gpu" not in str(pod["containers"])


def test_it_pulls_with_the_secrets_of_the_stages() -> None:
    pod = daemon("--values", str(CHART / "ci/full-values.yaml"))["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"example.com/pool": "a100"}


@pytest.mark.parametrize("name", ["a" * 63, "finetune-operator"])
def test_its_name_and_labels_never_match_the_operators_own(name: str) -> None:
    objects = render(*ON, "--set", f"fullnameOverride={name}")
    daemon_set, deployment = only(objects, "DaemonSet"), only(objects, "Deployment")
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= labels.items()
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert len(daemon_set["metadata"]["name"]) <= 63


def test_helm_test_runs_a_restricted_pod_that_is_removed_afterwards() -> None:
    pod = only(render(), "Pod", "-test")
    assert pod["metadata"]["annotations"] == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }
    assert restricted(pod["spec"])
    service = only(render(), "Service", "-metrics")
    assert f'service = "{service["metadata"]["name"]}"' in pod["spec"]["containers"][0]["command"][2]
