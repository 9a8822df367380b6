"""A real kubelet with containerd 2 mounts a published model as an image volume, straight from a real registry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import cluster, images, product
from devcluster.kubectl import Kubectl
from devcluster.layout import CONTAINERD_VARIABLE, Layout

from tests.support.e2e.namespaces import fresh_namespace
from tests.support.e2e.registry import Registry, registry_server
from tests.support.publishing import digests, make_artifact, open_named

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    """A dev cluster whose node runs containerd 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONTAINERD_VARIABLE, "2")
        with cluster.running(Layout(f"volume-{os.getpid()}")) as running:
            images.import_images(running.containerd_socket, images.PRODUCT_IMAGES)
            yield running


@pytest.fixture(scope="module")
def kubectl(layout: Layout) -> Iterator[Kubectl]:
    admin = Kubectl(layout.kubeconfig)
    with fresh_namespace(admin) as name:
        yield admin.within(name)


@pytest.fixture(scope="module")
def registry(layout: Layout, kubectl: Kubectl) -> Iterator[Registry]:
    """A registry that the node reaches over http."""
    with registry_server(kubectl, images.TRAINER_IMAGE, tls=False) as running:
        place = layout.registries / running.host
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(f'server = "http://{running.host}"\n')
        yield running


def pod_with(reference: str, name: str, script: str) -> dict[str, Any]:
    """Return a pod that runs a script with the image volume at /models."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": product.RESTRICTED_POD,
            "containers": [
                {
                    "name": "reader",
                    "image": images.TRAINER_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "securityContext": product.RESTRICTED_CONTAINER,
                    "volumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}],
        },
    }


def run(kubectl: Kubectl, pod: dict[str, Any]) -> str:
    """Run a pod to its end, and return what it printed."""
    name = pod["metadata"]["name"]
    kubectl.apply(pod)
    answer = kubectl.run("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    assert answer.returncode == 0, kubectl("describe", "pod", name)
    return kubectl("logs", name)


def test_a_pod_mounts_the_published_files_read_only(
    kubectl: Kubectl, registry: Registry, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=20)
    place = {"kind": "Oci", "name": "registry", "reference": f"{registry.forwarded}/team/bot:1"}
    open_named(place, tmp_path / "journals", {}).publish(artifact, lambda _: None)
    script = "cd /models && find . -type f -exec sha256sum {} + && ! touch merged/new 2>/dev/null && echo read-only"
    lines = run(kubectl, pod_with(f"{registry.host}/team/bot:1-image", "reader", script)).split("\n")
    assert "read-only" in lines
    found = {
        path.removeprefix("./"): f"sha256:{digest}"
        for digest, _, path in (line.partition("  ") for line in lines)
        if path
    }
    assert found.pop("manifest.json") is not None
    assert found == digests(artifact)
