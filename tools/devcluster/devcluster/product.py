"""Operations on a cluster with the product: install the chart, fill and read volumes, follow a job to its end.

The tests and the demo use it. It needs only helm and kubectl, so it works on any cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devcluster.errors import DevClusterError
from devcluster.images import NONROOT
from devcluster.kubectl import Kubectl
from devcluster.layout import OPERATOR_NAMESPACE, REPOSITORY, tool
from devcluster.provider import ProvidedCluster

CHART = REPOSITORY / "helm" / "finetune-operator"
SYSTEM_NAMESPACE = OPERATOR_NAMESPACE
RELEASE = "finetune"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

# Resources for the pods of a 135M model on a machine with two cores; requests are small so that all pods fit.
SMALL_STAGES = {
    "prepare": {"cpu": "250m", "memory": "3Gi"},
    "train": {"cpu": "500m", "memory": "6Gi"},
    "merge": {"cpu": "250m", "memory": "4Gi"},
}


def _image_values(name: str) -> dict[str, str]:
    """Return registry, repository and tag of an image name in the chart's form."""
    repository, _, tag = name.rpartition(":")
    registry, separator, path = repository.partition("/")
    if not separator or not ("." in registry or ":" in registry or registry == "localhost"):
        raise DevClusterError(f"an image must be named REGISTRY/REPOSITORY:TAG, found {name!r}")
    return {"registry": registry, "repository": path, "tag": tag}


def create_namespace(kubectl: Kubectl, name: str) -> None:
    """Create a namespace that enforces the restricted Pod Security level, unless it exists."""
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})


def install_chart(provided: ProvidedCluster, values: Mapping[str, Any] | None = None) -> None:
    """Install or upgrade the chart with this cluster's images, training on the CPU, and wait until it is available.

    `values` are merged, object by object, over defaults for a small machine without a GPU. Raises DevClusterError with
    helm's message.
    """
    create_namespace(Kubectl(provided.kubeconfig), SYSTEM_NAMESPACE)
    small: dict[str, Any] = {
        "image": _image_values(provided.operator_image),
        "replicas": 1,
        "progressSeconds": 2,
        "trainer": {
            "image": _image_values(provided.trainer_image),
            "device": "cpu",
            "resources": SMALL_STAGES,
        },
    }
    chosen = _merged(small, values or {})
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(chosen, file)
        file.flush()
        command = [
            str(tool("helm")), "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE,
            "--values", file.name, "--wait", "--timeout", "120s",
            # This release takes over a CRD that another test or an earlier release applied.
            "--take-ownership",
        ]  # fmt: skip
        environment = {**os.environ, "KUBECONFIG": str(provided.kubeconfig)}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode != 0:
        raise DevClusterError(f"helm must install {CHART.name}, but it reported: {answer.stderr.strip()}")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` changed by `above`; objects are merged, all other values are replaced."""
    merged = dict(below)
    for key, value in above.items():
        both_objects = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both_objects else value
    return merged


def claim(name: str, size: str) -> dict[str, Any]:
    """Return a PersistentVolumeClaim of the cluster's default storage class."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


# Required by the restricted Pod Security level of the namespaces.
RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": NONROOT,
    "runAsGroup": NONROOT,
    "fsGroup": NONROOT,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@contextmanager
def volume_pod(kubectl: Kubectl, claim_name: str, image: str) -> Iterator[str]:
    """Run a pod that mounts a claim at /volume for the duration of a `with` block; yields its name."""
    name = f"volume-{claim_name}"
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": RESTRICTED_POD,
                "containers": [
                    {
                        "name": "volume",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sleep", "3600"],
                        "securityContext": RESTRICTED_CONTAINER,
                        "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
                    }
                ],
                "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": claim_name}}],
            },
        }
    )
    try:
        kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
        yield name
    finally:
        kubectl("delete", "pod", name, "--ignore-not-found", "--wait=true")


def _pod_command(kubectl: Kubectl, pod: str, *arguments: str) -> list[str]:
    scope = [] if kubectl.namespace is None else ["--namespace", kubectl.namespace]
    return [str(tool("kubectl")), *scope, "exec", "--stdin", pod, "--", *arguments]


def fill_volume(kubectl: Kubectl, pod: str, folder: Path, path: str = ".") -> None:
    """Copy the content of `folder` to `path` inside the volume of a volume_pod."""
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    kubectl("exec", pod, "--", "mkdir", "-p", f"/volume/{path}")
    command = _pod_command(kubectl, pod, "tar", "-C", f"/volume/{path}", "-xf", "-")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            for entry in sorted(folder.iterdir()):  # not ".", which another user may own in a volume
                archive.add(entry, arcname=entry.name, filter=_readable)
        if process.stdin is not None:
            process.stdin.close()
        if process.wait() != 0:
            raise DevClusterError(
                f"tar in pod {pod} must unpack {folder}, it ended with {process.returncode}"
            )


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Let every user of the pod unpack and read the files."""
    entry.uid = entry.gid = NONROOT
    entry.uname = entry.gname = ""
    entry.mode = 0o775 if entry.isdir() else 0o664
    return entry


def read_volume(kubectl: Kubectl, pod: str, path: str, folder: Path) -> None:
    """Copy the content of `path` inside the volume of a volume_pod to `folder`."""
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    folder.mkdir(parents=True, exist_ok=True)
    command = _pod_command(kubectl, pod, "tar", "-C", f"/volume/{path}", "-cf", "-", ".")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            archive.extractall(folder, filter="data")
        if process.wait() != 0:
            raise DevClusterError(f"tar in pod {pod} must pack {path}, it ended with {process.returncode}")


def condition(job: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the condition of type `kind` of a FineTuneJob, or an empty one if it has none yet."""
    for found in job.get("status", {}).get("conditions", []):
        if found["type"] == kind:
            return dict(found)
    return {"type": kind, "status": "Unknown", "reason": "", "message": ""}


def follow(
    kubectl: Kubectl,
    name: str,
    *,
    seconds: float,
    seen: Callable[[dict[str, Any]], None] = lambda _job: None,
) -> dict[str, Any]:
    """Poll a FineTuneJob every second, pass each state to `seen`, and return it once `Succeeded` is True or False.

    Raises DevClusterError with the last status if it has not ended after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        job: dict[str, Any] = kubectl.json("get", "finetunejob", name)
        seen(job)
        if condition(job, "Succeeded")["status"] != "Unknown":
            return job
        if time.monotonic() > deadline:
            status = json.dumps(job.get("status", {}), indent=1)
            raise DevClusterError(
                f"FineTuneJob {name} must end within {seconds:.0f} s, its status is {status}"
            )
        time.sleep(1)
