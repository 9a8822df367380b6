"""Copy a published artifact out of its claim, through a pod that reads it, and check its digest."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_client.kubectl import ClusterError, Kubectl
from finetune_client.pods import temporary_pod

_START_SECONDS = 300
_LIFE_SECONDS = 6 * 3600
"""Kubernetes ends a forgotten pod after this time."""
_MOUNT = "/artifact"
_CONTAINER = "reader"


class DigestMismatchError(ClusterError):
    """The copied files are not those that the job published."""


def copied_artifact(kubectl: Kubectl, job: Mapping[str, Any], kind: str, folder: Path) -> Path:
    """Copy the artifact `kind` of `job` into the new `folder`.

    Raises ClusterError, DigestMismatchError if a file has changed, and TimeoutError if the pod does not start.
    """
    status = job.get("status") or {}
    artifact = next((item for item in status.get("artifacts") or () if item["kind"] == kind), None)
    if artifact is None:
        found = ", ".join(item["kind"] for item in status.get("artifacts") or ()) or "none"
        raise ClusterError(f"the job must have published the artifact {kind}, found {found}")
    scheme, _, rest = artifact["uri"].partition("://")
    if scheme != "pvc":
        raise ClusterError(
            f"the artifact must be in a claim, found {artifact['uri']}; use a tool of that store, then finetune verify"
        )
    namespace, claim, path = rest.split("/", 2)
    folder.mkdir(parents=True, exist_ok=False)
    reader = kubectl.within(namespace)
    pod = _pod_manifest(job, claim, status["trainer"]["image"])
    try:
        with temporary_pod(reader, pod, ("Running", "Succeeded", "Failed"), _START_SECONDS) as name:
            _unpack(reader, name, path, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a half copy must not look whole
        raise
    digest = artifact_digest(folder)
    if digest != artifact["digest"]:
        raise DigestMismatchError(
            f"the files of {folder} must have the digest {artifact['digest']}, found {digest}"
        )
    return folder


def artifact_digest(folder: Path) -> str:
    """Return the digest over the sorted list of file names and file digests, as `status.artifacts` has it."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files.append([path.relative_to(folder).as_posix(), f"sha256:{digest}"])
    canonical = json.dumps(sorted(files), separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _pod_manifest(job: Mapping[str, Any], claim: str, image: str) -> dict[str, Any]:
    """Return a pod of the level Restricted that reads `claim`, with the user and the pull secrets of the job's pods."""
    template = job["spec"].get("podTemplate") or {}
    names = ("serviceAccountName", "imagePullSecrets", "tolerations")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{job['metadata']['name']}-fetch-"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "activeDeadlineSeconds": _LIFE_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": _CONTAINER,
                    "image": image,
                    "command": ["sleep", str(_LIFE_SECONDS)],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "resources": {
                        "requests": {"cpu": "100m", "memory": "64Mi"},
                        "limits": {"cpu": "1", "memory": "256Mi"},
                    },
                    "volumeMounts": [{"name": "artifact", "mountPath": _MOUNT, "readOnly": True}],
                }
            ],
            "volumes": [
                {"name": "artifact", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            ],
            **{name: template[name] for name in names if name in template},
        },
    }


def _unpack(kubectl: Kubectl, pod: str, path: str, folder: Path) -> None:
    """Copy the files below `path` of the claim into `folder`. Raises ClusterError."""
    command = (
        "exec",
        pod,
        f"--container={_CONTAINER}",
        "--",
        "tar",
        "-C",
        f"{_MOUNT}/{path}",
        "-cf",
        "-",
        ".",
    )
    broken: tarfile.TarError | None = None
    with kubectl.stream(*command) as output:
        try:
            with tarfile.open(fileobj=output, mode="r|") as archive:
                archive.extractall(folder, filter="data")
        except tarfile.TarError as error:
            broken = error  # kubectl's own error comes first and says more
    if broken is not None:
        raise ClusterError(f"pod {pod} must send all files of {path}, found: {broken}") from broken
