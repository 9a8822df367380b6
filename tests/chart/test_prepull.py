"""The DaemonSet that keeps the trainer's image on GPU nodes, and the pod of `helm test`."""

from __future__ import annotations

import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support.chart import CHART, Manifest, only, render
from tests.support.servers.loopback import http_server

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


@pytest.mark.parametrize("name", ["a" * 63, "finetune-operator"])
def test_helm_test_runs_a_restricted_pod_that_is_removed_afterwards(name: str) -> None:
    objects = render("--set", f"fullnameOverride={name}")
    pod = only(objects, "Pod", "-test")
    assert pod["metadata"]["annotations"] == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }
    assert restricted(pod["spec"])
    service = only(objects, "Service", "-metrics")
    assert len(service["metadata"]["name"]) <= 63
    assert f'service = "{service["metadata"]["name"]}"' in pod["spec"]["containers"][0]["command"][2]


@pytest.mark.parametrize("value", ["1.0", "0.0"])
def test_helm_test_finds_a_leader_in_more_series_than_its_memory(value: str) -> None:
    """The script runs with the memory of its pod, and for a second instead of a minute."""
    (container,) = only(render(), "Pod", "-test")["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "64Mi"}
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_DATA, ({2**26}, {2**26}))\n"
    scrape = b"finetunejob_info 1.0\n" * (2 * 10**6) + f"leader_election_master_status{{}} {value}\n".encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(scrape)

    with http_server(answer) as origin:
        script = limit + container["command"][2].replace(":8080/", f":{urlsplit(origin).port}/")
        environment = {"FT_FINETUNE_OPERATOR_METRICS_SERVICE_HOST": "127.0.0.1"}
        assert "() + 60\n" in script
        command = [sys.executable, "-c", script.replace("() + 60\n", "() + 1\n")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if value == "1.0":
        assert (done.returncode, done.stdout) == (0, "the operator serves and leads\n"), done.stderr
    else:
        assert (done.returncode, "a replica must lead" in done.stderr) == (1, True), done.stderr


def test_the_pod_of_helm_test_may_ask_whatever_peers_scrape() -> None:
    objects = render("--values", str(CHART / "ci/full-values.yaml"))
    (peers,) = (
        each["from"]
        for each in only(objects, "NetworkPolicy", "operator")["spec"]["ingress"]
        if "from" in each
    )
    pod = only(objects, "Pod", "-test")["metadata"]["labels"]
    selectors = [each["podSelector"]["matchLabels"] for each in peers if "podSelector" in each]
    assert [selector.items() <= pod.items() for selector in selectors] == [True]
    assert len(peers) == 2
