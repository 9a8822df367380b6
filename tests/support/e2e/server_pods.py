"""A server pod for the tests of a module; its program arrives through `kubectl exec` after the pod's start."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devcluster import product
from devcluster.errors import DevClusterError
from devcluster.images import NONROOT
from devcluster.kubectl import Kubectl
from devcluster.layout import tool

from tests.support.e2e.jobs import SERVER_LABEL

FOLDER = "/volume"
"""The pod's empty volume; the pod starts its program as soon as the file `ready` exists."""
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


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
    return address_of(kubectl, name)


def address_of(kubectl: Kubectl, name: str) -> str:
    """Return the IP address of a running pod."""
    return str(kubectl.json("get", "pod", name)["status"]["podIP"])


def send_program(kubectl: Kubectl, name: str, program: Path) -> None:
    """Copy a program of `.cache/bin` to FOLDER in the pod. Raises DevClusterError if it is not built."""
    if not os.access(program, os.X_OK):
        raise DevClusterError(f"{program} must exist, found none; run make object-stores")
    command = [
        str(tool("kubectl")), "--namespace", str(kubectl.namespace), "exec", "--stdin", name, "--",
        "tar", "-C", FOLDER, "-xf", "-",
    ]  # fmt: skip
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            archive.add(program, arcname=program.name, filter=_executable)
        if process.stdin is not None:
            process.stdin.close()
        if process.wait() != 0:
            raise DevClusterError(
                f"tar in pod {name} must unpack the server, it ended with {process.returncode}"
            )


@contextmanager
def forwarded_port(kubectl: Kubectl, name: str, port: int) -> Iterator[int]:
    """Forward a port of the pod for the duration of a `with` block; yields the port on this machine's loopback."""
    command = [str(tool("kubectl")), "--namespace", str(kubectl.namespace), "port-forward", f"pod/{name}",
               f":{port}", "--address=127.0.0.1"]  # fmt: skip
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            match = _FORWARDING.search(line)
            if match is None:
                raise DevClusterError(f"kubectl port-forward must print its port, found {line!r}")
            yield int(match[1])
        finally:
            process.terminate()


def _executable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = NONROOT
    entry.uname = entry.gname = ""
    entry.mode = 0o755
    return entry


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
