"""A server pod for the tests of a module; its program arrives through `kubectl exec` after the pod's start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e.jobs import SERVER_LABEL

FOLDER = "/volume"
"""The pod's empty volume; the pod starts its program as soon as the file `ready` exists."""


@contextmanager
def server_pod(
    kubectl: Kubectl, name: str, image: str, *, start: str, port: int, env: dict[str, str]
) -> Iterator[None]:
    """Create the pod for the duration of a `with` block; `start` is the shell command of the server.

    The block starts when the container runs: fill FOLDER with `product.fill_volume`, then call `await_server`.
    """
    kubectl.apply(_pod(name, image, start, port, env))
    kubectl("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
    yield
    kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")


def await_server(kubectl: Kubectl, name: str) -> str:
    """Let the server start, wait until it listens, and return its IP address."""
    kubectl("exec", name, "--", "touch", f"{FOLDER}/ready")
    # A port forward fails if the server does not listen yet.
    kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
    return str(kubectl.json("get", "pod", name)["status"]["podIP"])


def _pod(name: str, image: str, start: str, port: int, env: dict[str, str]) -> dict[str, Any]:
    script = f"until [ -e {FOLDER}/ready ]; do sleep 0.2; done; {start}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {SERVER_LABEL: "true"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": product.RESTRICTED_POD,
            "containers": [
                {
                    "name": "server",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "env": [{"name": key, "value": value} for key, value in env.items()],
                    "securityContext": product.RESTRICTED_CONTAINER,
                    "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "volume", "mountPath": FOLDER}],
                }
            ],
            "volumes": [{"name": "volume", "emptyDir": {}}],
        },
    }
